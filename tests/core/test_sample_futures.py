"""Sample calls that are submitted and asked for later."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tinkergate.core.sample_futures import SEQ_IDS_PER_BLOCK
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import token_bytes, tokens_from_bytes
from tinkergate.v1 import (
    Chunk,
    CreateSamplerRequest,
    EncodedTextChunk,
    FinishSessionRequest,
    ModelInput,
    SampleRequest,
    SampleResponse,
)

BASE = "accounts/small"


def request(sampler_id: str, seq_id: int | None = None, **fields: Any) -> SampleRequest:
    tokens = EncodedTextChunk(tokens=token_bytes(fields.pop("tokens", [5, 6])))
    return SampleRequest(
        sampler_id=sampler_id,
        seq_id=seq_id,
        prompt=ModelInput(chunks=[Chunk(encoded_text=tokens)]),
        **{"num_samples": 3} | fields,
    )


def drawn(response: SampleResponse | None) -> list[int]:
    assert response is not None
    return [int(tokens_from_bytes(s.tokens)[0]) for s in response.sequences]


async def sampler(house: Any, session_id: str = "") -> str:
    response = await house.gateway.samplers.create(
        CreateSamplerRequest(session_id=session_id or await house.session(), base_model=BASE)
    )
    return response.sampler.sampler_id


async def test_a_repeat_is_the_same_future_and_its_answer_can_be_had_again(house: Any) -> None:
    futures = house.gateway.sample_futures
    wanted = await sampler(house)
    first = await futures.submit(request(wanted, 0))
    again = await futures.submit(request(wanted, 0))
    assert again is first
    other = await futures.submit(request(wanted, 1))
    assert other.name != first.name
    answers = [await futures.wait(first.name, 5) for _ in range(2)]
    assert drawn(answers[0]) == [5, 6, 7]
    assert answers[1] is answers[0]
    assert house.backend.samples_begun == 2
    with pytest.raises(GatewayError, match="seq_id 0") as refused:
        await futures.submit(request(wanted, 0, tokens=[9]))
    assert refused.value.kind is Kind.CONFLICT


async def test_nobody_need_wait_for_it_to_go_on(house: Any) -> None:
    futures = house.gateway.sample_futures
    house.backend.sample_gate.clear()
    future = await futures.submit(request(await sampler(house)))
    assert await futures.wait(future.name, 0.01) is None
    house.backend.sample_gate.set()
    await house.until(lambda: future.call.done)
    assert drawn(await futures.wait(future.name, 0)) == [5, 6, 7]


async def test_cancelled_it_stops(house: Any) -> None:
    futures = house.gateway.sample_futures
    house.backend.sample_gate.clear()
    future = await futures.submit(request(await sampler(house), 0))
    await house.until(lambda: house.backend.samples_begun == 1)
    futures.cancel(future.name)
    futures.cancel(future.name)
    futures.cancel("no such call")
    await house.until(lambda: house.backend.samples_stopped == 1)
    with pytest.raises(GatewayError) as told:
        await futures.wait(future.name, 5)
    assert told.value.kind is Kind.CANCELLED


async def test_a_caller_who_still_wants_it_keeps_it_from_stopping(house: Any) -> None:
    house.backend.sample_gate.clear()
    wanted = await sampler(house)
    future = await house.gateway.sample_futures.submit(request(wanted, 0))
    caller = asyncio.create_task(house.gateway.sampling.sample(request(wanted, 0)))
    await house.until(lambda: future.call.callers == 2)
    house.gateway.sample_futures.cancel(future.name)
    house.gateway.sample_futures.cancel(future.name)
    house.backend.sample_gate.set()
    assert drawn(await caller) == [5, 6, 7]
    assert house.backend.samples_begun == 1


async def test_it_ends_with_its_session(house: Any) -> None:
    futures = house.gateway.sample_futures
    house.backend.sample_gate.clear()
    session_id = await house.session()
    future = await futures.submit(request(await sampler(house, session_id), 0))
    await house.until(lambda: house.backend.samples_begun == 1)
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=session_id))
    await house.until(lambda: house.backend.samples_stopped == 1)
    with pytest.raises(GatewayError):
        await futures.wait(future.name, 5)


async def test_a_failure_is_kept_under_its_name(house: Any) -> None:
    futures = house.gateway.sample_futures
    house.backend.fail_sample = GatewayError(Kind.UNAVAILABLE, 0, "out of order")
    future = await futures.submit(request(await sampler(house), 0))
    for _ in range(2):
        with pytest.raises(GatewayError, match="out of order"):
            await futures.wait(future.name, 5)
    assert house.backend.samples_begun == 1


async def test_answers_are_kept_for_a_time_handed_out_ones_shorter(open_house: Any) -> None:
    house = await open_house(sample_retention=10.0, result_retention=100.0)
    futures = house.gateway.sample_futures
    wanted = await sampler(house)
    told = await futures.submit(request(wanted, 0))
    untold = await futures.submit(request(wanted, 1))
    await futures.wait(told.name, 5)
    await house.until(lambda: untold.call.done)
    await asyncio.sleep(0)
    house.clock.seconds += 11
    await house.gateway.reap()
    with pytest.raises(GatewayError) as gone:
        await futures.wait(told.name, 0)
    assert gone.value.kind is Kind.NOT_FOUND
    house.clock.seconds += 80
    await house.gateway.reap()
    assert drawn(await futures.wait(untold.name, 0)) == [5, 6, 7]


async def test_answers_are_kept_within_bytes_handed_out_ones_go_first(open_house: Any) -> None:
    house = await open_house(sample_byte_budget=3000)
    futures = house.gateway.sample_futures
    wanted = await sampler(house)
    names = []
    for number in range(3):
        future = await futures.submit(request(wanted, number))
        await house.until(lambda future=future: future.end_time > 0)
        names.append(future.name)
        if number == 1:
            assert drawn(await futures.wait(future.name, 0))
    assert [name for name in names if _kept(futures, name)] == [names[0], names[2]]


def _kept(futures: Any, name: str) -> bool:
    try:
        futures.require(name)
    except GatewayError:
        return False
    return True


async def test_completions_are_told_in_order_until_they_are_acknowledged(house: Any) -> None:
    futures = house.gateway.sample_futures
    wanted = await sampler(house)
    assert await futures.completions(wanted, 0, 0, 0) == ([], 0)
    waiting = asyncio.create_task(futures.completions(wanted, 0, 0, 5))
    await asyncio.sleep(0)
    first = await futures.submit(request(wanted, 0))
    told, cursor = await waiting
    assert [(c.name, c.size) for c in told] == [(first.name, first.size)]
    second = await futures.submit(request(wanted, 1))
    await house.until(lambda: second.end_time > 0)
    told, _ = await futures.completions(wanted, 0, 0, 0)
    assert [c.name for c in told] == [first.name, second.name]
    told, cursor = await futures.completions(wanted, 0, cursor, 0)
    assert [c.name for c in told] == [second.name]
    assert await futures.completions(wanted, 0, cursor, 0) == ([], 2)
    assert await futures.completions(wanted, 0, 0, 0) == ([], 2)


async def test_each_block_of_numbers_has_its_own_completions(house: Any) -> None:
    futures = house.gateway.sample_futures
    wanted = await sampler(house)
    house.backend.fail_sample = GatewayError(Kind.UNAVAILABLE, 0, "out of order")
    far = await futures.submit(request(wanted, 3 * SEQ_IDS_PER_BLOCK))
    told, _ = await futures.completions(wanted, 3, 0, 5)
    assert [(c.name, c.size) for c in told] == [(far.name, None)]
    assert (await futures.completions(wanted, 0, 0, 0))[0] == []
    futures.free([far.name, "no such call"])
    with pytest.raises(GatewayError):
        futures.require(far.name)


async def test_the_answer_is_the_calls_own(house: Any) -> None:
    futures = house.gateway.sample_futures
    future = await futures.submit(request(await sampler(house), 0, prompt_logprobs=True))
    answer = await futures.wait(future.name, 5)
    logprobs = np.frombuffer(answer.prompt_logprobs, np.float32)
    assert np.isnan(logprobs[0])
    assert logprobs[1] == -1.0
