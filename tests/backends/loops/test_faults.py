"""What goes wrong on the way, at every request of a run: the run ends as if nothing had, or with
one clear error; and no step is taken twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from faulty_proxy import Fault, Seen
from local_backend import BASE, MODEL, batch, chunks, run, sample, step
from loops_upstream import Capacity, LoopsUpstream, StartLoops, make
from tinker_upstream import fingerprint, steps

from tinkergate.backends import pauses
from tinkergate.backends.base import ModelSpec
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.loops.backend import LoopsBackend
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    GetModelRequest,
    ListModelsRequest,
    LoadStateRequest,
    LoraConfig,
    ModelInput,
    OptimizerConfig,
    SamplingParams,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)

FAULTS = {
    "429": Fault("status", status=429, headers=(("retry-after", "0.01"),)),
    "refuse": Fault("refuse"),
    "lose": Fault("lose"),
    "truncate": Fault("truncate"),
    "garbage": Fault("garbage"),
    "408": Fault("status", status=408),
    "502": Fault("status", status=502),
    "502 after": Fault("status_after", status=502),
}
LOAD = LoadStateRequest(model_id=MODEL, path=f"tinker://{MODEL}/weights/ck", with_optimizer=True)
ASKED: dict[str, Any] = {
    "sampler_id": "s-1:sample:0",
    "prompt": ModelInput(chunks=chunks([1, 2, 3])),
    "sampling_params": SamplingParams(max_tokens=4, seed=3),
}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is ever waited for in these tests for longer than it takes."""
    monkeypatch.setattr(pauses, "FIRST_PAUSE", 0.01)


def each_once(fault: Fault, *routes: str) -> Callable[[Seen], Fault | None]:
    """Mistreats every request (of routes that end so, if any are given) the first time that it
    comes."""
    before: set[tuple[str, str, bytes]] = set()

    def script(seen: Seen) -> Fault | None:
        key = (seen.method, seen.path, seen.body)
        if key in before or (routes and not seen.path.partition("?")[0].endswith(routes)):
            return None
        before.add(key)
        return fault

    return script


async def started(upstream: LoopsUpstream, **settings: Any) -> LoopsBackend:
    backend = upstream.backend(**settings)
    await backend.start()
    await backend.models()
    return backend


async def program(backend: Any) -> None:
    """Some of everything, in the order of a usual run."""
    await make(backend)
    await steps(backend, range(2))
    await run(backend, SaveStateRequest(model_id=MODEL, name="ck"))
    await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
    await steps(backend, range(2, 4))


async def steps_taken(upstream: LoopsUpstream) -> list[int]:
    """How many optimizer steps each model of the service has taken."""
    listed = await upstream.gateway.models.list(ListModelsRequest())
    taken = []
    for model in listed.models:
        request = GetModelRequest(model_id=model.model_id)
        taken.append((await upstream.gateway.models.get(request)).model.optimizer_steps)
    return taken


@pytest.mark.parametrize("capacity", ["serverless", "dedicated"])
@pytest.mark.parametrize("kind", FAULTS)
async def test_a_run_ends_as_if_nothing_had_happened(
    kind: str, capacity: Capacity, start_loops: StartLoops, near: LocalBackend
) -> None:
    upstream = await start_loops(capacity)
    far = await started(upstream)
    upstream.proxy.script = each_once(FAULTS[kind])
    await program(far)
    await program(near)
    got, wanted = await sample(far, **ASKED), await sample(near, **ASKED)
    assert [s.tokens for s in got.sequences] == [s.tokens for s in wanted.sequences]
    assert (await fingerprint(far) == await fingerprint(near)).all()
    assert upstream.proxy.faults > 15
    assert await steps_taken(upstream) == [4]
    await far.close()


async def test_operations_are_sent_again_under_the_same_key_and_number(
    upstream: LoopsUpstream,
) -> None:
    upstream.proxy.script = each_once(Fault("lose"), "/optim_step")
    far = await started(upstream)
    await make(far)
    await steps(far, range(3))
    sent = [seen.body for seen in upstream.proxy.seen if seen.path.endswith("/optim_step")]
    assert len(sent) == 6
    assert sent[::2] == sent[1::2]
    assert await steps_taken(upstream) == [3]
    await far.close()


async def test_a_trainer_whose_making_was_not_answered_is_found_and_not_made_twice(
    upstream: LoopsUpstream,
) -> None:
    far = await started(upstream)
    upstream.proxy.script = each_once(Fault("lose"), "/trainers")
    await make(far)
    assert upstream.asked("/trainers") == 1
    assert upstream.asked("/runs") == 1
    await steps(far, range(1))
    assert await steps_taken(upstream) == [1]
    await far.close()


async def test_a_trainer_that_nobody_waits_for_any_more_is_stopped(
    upstream: LoopsUpstream,
) -> None:
    far = await started(upstream)
    upstream.proxy.script = lambda seen: (
        Fault("status", status=503) if "/health" in seen.path else None
    )
    asked = asyncio.Event()
    spec = ModelSpec(
        MODEL,
        BASE,
        LoraConfig(rank=4),
        OptimizerConfig(),
        on_state=lambda _, words: asked.set() if words.startswith("trainer") else None,
    )
    making = asyncio.get_running_loop().create_task(far.create_model(spec))
    await asyncio.wait_for(asked.wait(), 30)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await far.close()
    assert upstream.asked("/deactivate") == 1


@pytest.mark.parametrize("route", ["/forward_backward", "/optim_step"])
@pytest.mark.parametrize("status", [404, 410, 503])
async def test_a_result_that_is_gone_leaves_the_model_in_doubt_until_it_is_loaded(
    route: str, status: int, start_loops: StartLoops, near: LocalBackend
) -> None:
    upstream = await start_loops("serverless")
    far = await started(upstream)
    await make(far)
    await steps(far, range(1))
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    request = batch(seed=1) if route == "/forward_backward" else step()
    if route == "/optim_step":
        await run(far, batch(seed=1))
    lost = Fault("status", status=status)
    upstream.proxy.script = lambda seen: lost if "/operations/" in seen.path else None
    with pytest.raises(GatewayError, match="may or may not have been done") as raised:
        await run(far, request)
    assert raised.value.kind is Kind.OUTCOME_UNKNOWN
    assert raised.value.backend == "far"
    assert route[1:] in raised.value.message
    assert raised.value.metadata["upstream_request_id"] in raised.value.message
    sent = upstream.asked(route)

    # A gradient in doubt must not be stepped by, and weights in doubt not be saved.
    upstream.proxy.script = lambda _: None
    for refused in (step(), batch(), SaveStateRequest(model_id=MODEL, name="doubtful")):
        with pytest.raises(GatewayError, match="LoadState") as raised:
            await run(far, refused)
        assert raised.value.kind is Kind.PRECONDITION
    assert upstream.asked(route) == sent

    # From the checkpoint on all is well, on a fresh trainer.
    loaded = await run(far, LOAD)
    assert loaded.optimizer_steps == 1
    await steps(far, range(1, 3))
    await make(near)
    await steps(near, range(3))
    assert (await fingerprint(far) == await fingerprint(near)).all()
    assert upstream.asked("/trainers") == 2
    await far.close()
    assert upstream.asked("/deactivate") == 2


async def test_a_load_whose_answer_is_lost_for_good_is_made_good_on_a_fresh_trainer(
    start_loops: StartLoops, near: LocalBackend
) -> None:
    upstream = await start_loops("dedicated")
    far = await started(upstream, retry_time=0.3)
    await make(far)
    await steps(far, range(2))
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    await steps(far, range(2, 3))
    [first] = [
        seen.path.rpartition("/")[0]
        for seen in upstream.proxy.seen
        if seen.path.endswith("/init_trainer_server")
    ]
    upstream.proxy.script = lambda seen: (
        Fault("lose")
        if seen.path.startswith(first) and seen.path.endswith("/load_state_with_optimizer")
        else None
    )
    assert (await run(far, LOAD)).optimizer_steps == 2
    await steps(far, range(7, 8))
    await make(near)
    await steps(near, range(2))
    await steps(near, range(7, 8))
    assert (await fingerprint(far) == await fingerprint(near)).all()
    await far.close()


async def test_a_sample_call_that_the_service_lost_is_made_again(
    start_loops: StartLoops,
) -> None:
    upstream = await start_loops("serverless")
    far = await started(upstream)
    asked = {**ASKED, "base_model": BASE}
    del asked["sampler_id"]
    before = await sample(far, **asked)
    left = 1

    def lose(seen: Seen) -> Fault | None:
        nonlocal left
        if "/operations/" not in seen.path or not left:
            return None
        left -= 1
        return Fault("status", status=404)

    upstream.proxy.script = lose
    assert await sample(far, **asked) == before
    assert upstream.asked("/sample") == 3
    await far.close()


async def test_a_service_that_is_not_there_was_sent_nothing(start_loops: StartLoops) -> None:
    upstream = await start_loops("serverless")
    far = await started(upstream, retry_time=0.5)
    await make(far)
    await upstream.proxy.__aexit__()
    for _ in range(2):  # nothing is in doubt, so the model would go on
        with pytest.raises(GatewayError, match="cannot be sent") as raised:
            await run(far, step())
        assert raised.value.kind is Kind.UNAVAILABLE
        assert raised.value.retryable
    await far.close()


async def test_a_refusal_does_not_stop_what_comes_after(far: LoopsBackend) -> None:
    await make(far)
    before = await fingerprint(far)
    bad = batch()
    bad.data[0].loss_fn_inputs["target_tokens"].dense = b"\0" * 8
    bad.data[0].loss_fn_inputs["target_tokens"].shape[:] = [1]
    with pytest.raises(GatewayError, match="backend 'far': forward_backward of model") as raised:
        await run(far, bad)
    assert raised.value.kind is Kind.INVALID
    assert raised.value.metadata["operation"] == f"forward_backward of model {MODEL}"
    assert (await fingerprint(far) == before).all()


async def test_a_key_that_is_not_taken_is_told_without_it(upstream: LoopsUpstream) -> None:
    backend = upstream.backend(api_key="of-somebody-else")
    with pytest.raises(GatewayError, match="does not take the gateway's key") as raised:
        await backend.start()
    assert "somebody" not in raised.value.message
    assert "somebody" not in repr(backend._settings)
    await backend.close()
