from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import token_bytes, tokens_from_bytes
from tinkergate.v1 import (
    Chunk,
    CreateSamplerRequest,
    EncodedTextChunk,
    ErrorReason,
    FinishSessionRequest,
    ModelInput,
    SampleRequest,
    SampleResponse,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    StreamSampleResponse,
)

BASE = "accounts/small"


def prompt(*tokens: int) -> ModelInput:
    return ModelInput(chunks=[Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))])


def request(sampler_id: str, seq_id: int | None = None, **fields: Any) -> SampleRequest:
    fields = {"prompt": prompt(5, 6), "num_samples": 3} | fields
    return SampleRequest(sampler_id=sampler_id, seq_id=seq_id, **fields)


def drawn(response: SampleResponse) -> list[int]:
    return [int(tokens_from_bytes(s.tokens)[0]) for s in response.sequences]


async def sampler(house: Any) -> str:
    response = await house.gateway.samplers.create(
        CreateSamplerRequest(session_id=await house.session(), base_model=BASE)
    )
    return response.sampler.sampler_id


async def begun(house: Any, count: int) -> None:
    await house.until(lambda: house.backend.samples_begun >= count)


async def stopped(house: Any, count: int) -> None:
    await house.until(lambda: house.backend.samples_stopped >= count)


async def test_sample_from_sampler_base_model_and_alias(house: Any) -> None:
    sample = house.gateway.sampling.sample
    assert drawn(await sample(request(await sampler(house)))) == [5, 6, 7]
    for name in (BASE, "small"):
        response = await sample(SampleRequest(base_model=name, prompt=prompt(9)))
        assert drawn(response) == [9]


async def test_a_repeat_is_given_the_same_answer(house: Any) -> None:
    sample, sampler_id = house.gateway.sampling.sample, await sampler(house)
    first = await sample(request(sampler_id, 0))
    assert await sample(request(sampler_id, 0)) == first
    assert house.backend.samples_begun == 1
    with pytest.raises(GatewayError) as caught:
        await sample(request(sampler_id, 0, num_samples=4))
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT
    await sample(request(sampler_id, 1))
    await sample(request(sampler_id))
    assert house.backend.samples_begun == 3


async def test_a_repeat_attaches_to_the_running_call(house: Any) -> None:
    sample, sampler_id = house.gateway.sampling.sample, await sampler(house)
    house.backend.sample_gate.clear()
    both = [asyncio.create_task(sample(request(sampler_id, 7))) for _ in range(2)]
    await begun(house, 1)
    both[0].cancel()
    await asyncio.wait([both[0]])
    house.backend.sample_gate.set()
    assert drawn(await both[1]) == [5, 6, 7]
    assert (house.backend.samples_begun, house.backend.samples_stopped) == (1, 0)


async def test_without_seq_id_the_work_stops_with_its_caller(house: Any) -> None:
    house.backend.sample_gate.clear()
    task = asyncio.create_task(house.gateway.sampling.sample(request(await sampler(house))))
    await begun(house, 1)
    task.cancel()
    await stopped(house, 1)


async def test_with_seq_id_the_work_goes_on_for_a_grace(open_house: Any) -> None:
    house = await open_house(sample_grace=3600)
    sampler_id = await sampler(house)
    house.backend.sample_gate.clear()
    task = asyncio.create_task(house.gateway.sampling.sample(request(sampler_id, 0)))
    await begun(house, 1)
    task.cancel()
    await asyncio.wait([task])
    again = asyncio.create_task(house.gateway.sampling.sample(request(sampler_id, 0)))
    await asyncio.sleep(0)
    house.backend.sample_gate.set()
    assert drawn(await again) == [5, 6, 7]
    assert (house.backend.samples_begun, house.backend.samples_stopped) == (1, 0)


async def test_after_the_grace_a_repeat_draws_anew(open_house: Any) -> None:
    house = await open_house(sample_grace=0)
    sampler_id = await sampler(house)
    house.backend.sample_gate.clear()
    task = asyncio.create_task(house.gateway.sampling.sample(request(sampler_id, 0)))
    await begun(house, 1)
    task.cancel()
    await stopped(house, 1)
    house.backend.sample_gate.set()
    assert drawn(await house.gateway.sampling.sample(request(sampler_id, 0))) == [5, 6, 7]
    assert house.backend.samples_begun == 2


async def test_a_failure_is_told_and_not_kept(house: Any) -> None:
    sample, sampler_id = house.gateway.sampling.sample, await sampler(house)
    house.backend.fail_sample = RuntimeError("secret")
    with pytest.raises(GatewayError) as caught:
        await sample(request(sampler_id, 0))
    assert caught.value.kind is Kind.INTERNAL
    assert "secret" not in caught.value.message
    house.backend.fail_sample = None
    assert drawn(await sample(request(sampler_id, 0))) == [5, 6, 7]


async def test_answers_are_kept_for_a_time_and_within_bytes(open_house: Any) -> None:
    house = await open_house(sample_retention=100, sample_byte_budget=1)
    sample, sampler_id = house.gateway.sampling.sample, await sampler(house)
    await sample(request(sampler_id, 0))
    await sample(request(sampler_id, 1))
    await sample(request(sampler_id, 1))
    assert house.backend.samples_begun == 2
    await sample(request(sampler_id, 0))
    assert house.backend.samples_begun == 3
    house.clock.seconds += 101
    await house.gateway.reap()
    await sample(request(sampler_id, 0))
    assert house.backend.samples_begun == 4


async def test_too_many_at_once_are_refused(open_house: Any) -> None:
    house = await open_house(max_running_samples=4, queue_retry_delay=2)
    sampler_id = await sampler(house)
    house.backend.sample_gate.clear()
    running = asyncio.create_task(house.gateway.sampling.sample(request(sampler_id)))
    await begun(house, 1)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sampling.sample(request(sampler_id, num_samples=2))
    assert caught.value.reason == ErrorReason.ERROR_REASON_QUEUE_FULL
    assert caught.value.retry_after == 2
    house.backend.sample_gate.set()
    await running
    await house.gateway.sampling.sample(request(sampler_id, num_samples=2))


async def collect(parts: AsyncIterator[StreamSampleResponse]) -> list[StreamSampleResponse]:
    return [part async for part in parts]


async def test_stream_yields_each_sequence_as_it_finishes(house: Any) -> None:
    sampler_id = await sampler(house)
    house.backend.sample_gate.clear()
    async with aclosing(house.gateway.sampling.stream(request(sampler_id))) as parts:
        first = await anext(parts)
        assert first.sequence.index == 0
        house.backend.sample_gate.set()
        rest = await collect(parts)
    assert [part.sequence.index for part in rest] == [1, 2]


async def test_stream_of_a_finished_call_has_all_its_parts(house: Any) -> None:
    sampler_id = await sampler(house)
    asked = {"prompt_logprobs": True}
    whole = await house.gateway.sampling.sample(request(sampler_id, 0, **asked))
    parts = await collect(house.gateway.sampling.stream(request(sampler_id, 0, **asked)))
    by_kind = {part.WhichOneof("event"): part for part in parts}
    assert by_kind["prompt"].prompt.prompt_logprobs == whole.prompt_logprobs
    assert not by_kind["prompt"].prompt.sequences
    assert parts[0].WhichOneof("event") == "prompt"
    sequences = [p.sequence for p in parts if p.WhichOneof("event") == "sequence"]
    assert [s.sequence for s in sequences] == list(whole.sequences)


async def test_closing_a_stream_stops_the_work(house: Any) -> None:
    sampler_id = await sampler(house)
    house.backend.sample_gate.clear()
    async with aclosing(house.gateway.sampling.stream(request(sampler_id))) as parts:
        await anext(parts)
    await stopped(house, 1)


async def test_a_stream_ends_with_the_error(house: Any) -> None:
    house.backend.sample_gate.clear()
    parts = house.gateway.sampling.stream(request(await sampler(house)))
    await anext(parts)
    house.backend.fail_sample = GatewayError(
        Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE, "gone"
    )
    house.backend.sample_gate.set()
    with pytest.raises(GatewayError, match="gone"):
        await collect(parts)


async def test_a_sampler_ends_with_its_session(house: Any) -> None:
    sampler_id = await sampler(house)
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=sampler_id.split(":")[0]))
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sampling.sample(request(sampler_id))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND


LONG = prompt(*range(33))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ModelInput()}, "prompt.chunks"),
        ({"prompt": prompt()}, "prompt.chunks"),
        ({"prompt": prompt(1, 100)}, "prompt.chunks[0].encoded_text.tokens"),
        ({"prompt": prompt(1, -1)}, "prompt.chunks[0].encoded_text.tokens"),
        ({"prompt": LONG}, "prompt.chunks"),
        ({"num_samples": -1}, "num_samples"),
        ({"num_samples": 1025}, "num_samples"),
        ({"sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens"),
        ({"sampling_params": {"temperature": -0.1}}, "sampling_params.temperature"),
        ({"sampling_params": {"temperature": float("nan")}}, "sampling_params.temperature"),
        ({"sampling_params": {"top_k": -2}}, "sampling_params.top_k"),
        ({"sampling_params": {"top_p": 0.0}}, "sampling_params.top_p"),
        ({"sampling_params": {"top_p": 1.5}}, "sampling_params.top_p"),
        (
            {"sampling_params": {"stop_strs": {"values": ["a", ""]}}},
            "sampling_params.stop_strs.values[1]",
        ),
        (
            {"sampling_params": {"stop_tokens": {"values": [100]}}},
            "sampling_params.stop_tokens.values[0]",
        ),
        ({"topk_prompt_logprobs": 101}, "topk_prompt_logprobs"),
        ({"topk_sample_logprobs": -1}, "topk_sample_logprobs"),
        ({"prompt_alt_tokens_k": 101}, "prompt_alt_tokens_k"),
        ({"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 2}, "prompt_logprobs_last_n"),
        ({"seq_id": -1}, "seq_id"),
        ({"backend": "books"}, "backend"),
    ],
)
async def test_bad_requests_name_the_field(house: Any, fields: dict[str, Any], field: str) -> None:
    bad = request(await sampler(house))
    bad.MergeFrom(SampleRequest(**{k: v for k, v in fields.items() if k != "prompt"}))
    if "prompt" in fields:
        bad.prompt.CopyFrom(fields["prompt"])
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sampling.sample(bad)
    assert caught.value.kind is Kind.INVALID
    assert [violation.field for violation in caught.value.violations] == [field]
    assert house.backend.samples_begun == 0


@pytest.mark.parametrize(
    ("shape", "value", "is_good"),
    [([1, 2], 99, True), ([1, 2], -1, True), ([1, 2], 100, False), ([2, 2], 0, False)],
)
async def test_target_prompt_logprobs(
    house: Any, shape: list[int], value: int, is_good: bool
) -> None:
    asked = request(await sampler(house))
    asked.target_prompt_logprobs.dense = np.full(shape, value, np.int64).tobytes()
    asked.target_prompt_logprobs.dtype = 2
    asked.target_prompt_logprobs.shape.extend(shape)
    if is_good:
        await house.gateway.sampling.sample(asked)
        return
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sampling.sample(asked)
    assert [violation.field for violation in caught.value.violations] == ["target_prompt_logprobs"]


async def test_tables_that_fit_no_message_are_refused(open_house: Any) -> None:
    house = await open_house(max_message_bytes=10_000)
    asked = request(await sampler(house), topk_sample_logprobs=100)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sampling.sample(asked)
    assert [violation.field for violation in caught.value.violations] == ["topk_sample_logprobs"]
    asked.sampling_params.max_tokens = 3
    await house.gateway.sampling.sample(asked)


async def test_what_the_backend_lacks_is_refused_by_name(house: Any) -> None:
    sampler_id = await sampler(house)
    image = request(sampler_id)
    image.prompt.chunks.add().image.format = "png"
    for asked, words in (
        (image, "image chunks"),
        (request(sampler_id, record_stability_info=True), "stability"),
    ):
        with pytest.raises(GatewayError, match=words) as caught:
            await house.gateway.sampling.sample(asked)
        assert caught.value.kind is Kind.UNSUPPORTED
        assert caught.value.backend == "books"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (SampleRequest(), "source"),
        (SampleRequest(sampler_id=""), "sampler_id"),
        (SampleRequest(base_model=BASE, seq_id=1), "seq_id"),
        (SampleRequest(model_path="nonsense"), "model_path"),
    ],
)
async def test_bad_sources(house: Any, asked: SampleRequest, field: str) -> None:
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sampling.sample(asked)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_from_a_checkpoint_and_from_weights_just_saved(house: Any) -> None:
    model = await house.model()
    submit, wait = house.gateway.training.submit, house.wait
    path = (await wait(await submit(SaveStateRequest(model_id=model)))).save_state.path
    response = await house.gateway.sampling.sample(SampleRequest(model_path=path, prompt=prompt(4)))
    assert drawn(response) == [4]
    saved = await wait(await submit(SaveWeightsForSamplerRequest(model_id=model)))
    sampler_id = saved.save_weights_for_sampler.sampler_id
    assert drawn(await house.gateway.sampling.sample(request(sampler_id))) == [5, 6, 7]
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sampling.sample(SampleRequest(model_path=path + "x", prompt=prompt(4)))
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
