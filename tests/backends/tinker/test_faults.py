"""What goes wrong on the way, at every request of a run: the run ends as if nothing had, or with
one clear error; and no step is taken twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from faulty_proxy import Fault, Seen
from local_backend import BASE, MODEL, batch, chunks, drawing, run, sample, step
from tinker_upstream import StartUpstream, Upstream, fingerprint, make, steps

from tinkergate.backends import failures, pauses
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.v1 import (
    GetModelRequest,
    ListModelsRequest,
    LoadStateRequest,
    ModelInput,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)

HARMLESS = {
    "429": Fault("status", status=429, headers=(("retry-after-ms", "10"),)),
    "402": Fault("status", status=402),
    "409": Fault("status", status=409),
}
"""Faults after which it is sure that nothing was done."""

DOUBTFUL = {
    "refuse": Fault("refuse"),
    "lose": Fault("lose"),
    "truncate": Fault("truncate"),
    "garbage": Fault("garbage"),
    "408": Fault("status", status=408),
    "500": Fault("status", status=500),
    "503": Fault("status", status=503, headers=(("retry-after", "0.01"),)),
    "502 after": Fault("status_after", status=502),
}
"""Faults after which it may have been done, or was."""

TRAINING = ("forward_backward", "optim_step")


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is ever waited for in these tests for longer than it takes."""
    monkeypatch.setattr(pauses, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(pauses, "BILLING_INTERVAL", 0.02)


def each_once(fault: Fault, *routes: str) -> Callable[[Seen], Fault | None]:
    """Mistreats every request (of these routes, if any are given) the first time that it comes."""
    before: set[tuple[str, str, bytes]] = set()

    def script(seen: Seen) -> Fault | None:
        route = seen.path.removeprefix("/api/v1/")
        key = (seen.method, seen.path, seen.body)
        if key in before or (routes and route not in routes):
            return None
        before.add(key)
        return fault

    return script


def so_often(fault: Fault, route: str, times: int = 1) -> Callable[[Seen], Fault | None]:
    """Mistreats the first requests of a route."""
    left = times

    def script(seen: Seen) -> Fault | None:
        nonlocal left
        if seen.path != f"/api/v1/{route}" or not left:
            return None
        left -= 1
        return fault

    return script


async def started(upstream: Upstream, **settings: Any) -> TinkerBackend:
    backend = upstream.backend(**settings)
    await backend.start()
    return backend


async def program(backend: Any) -> None:
    """Some of everything, in the order of a usual run."""
    await make(backend)
    await steps(backend, range(2))
    await run(backend, SaveStateRequest(model_id=MODEL, name="ck"))
    await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
    await steps(backend, range(2, 4))


async def steps_taken(upstream: Upstream) -> dict[str, int]:
    """How many optimizer steps each model of the service has taken."""
    listed = await upstream.gateway.models.list(ListModelsRequest())
    taken = {}
    for model in listed.models:
        request = GetModelRequest(model_id=model.model_id)
        taken[model.model_id] = (await upstream.gateway.models.get(request)).model.optimizer_steps
    return taken


@pytest.mark.parametrize("kind", [*HARMLESS, *DOUBTFUL])
async def test_tinker_ends_as_if_nothing_had_happened(
    kind: str, start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("tinker")
    upstream.proxy.script = each_once((HARMLESS | DOUBTFUL)[kind])
    far = await started(upstream)
    await program(far)
    await program(near)
    asked: dict[str, Any] = {
        "sampler_id": "s-1:sample:0",
        "prompt": ModelInput(chunks=chunks([1, 2, 3])),
        "sampling_params": drawing(4),
    }
    assert await sample(far, **asked) == await sample(near, **asked)
    assert (await fingerprint(far) == await fingerprint(near)).all()
    assert upstream.proxy.faults > 15
    assert 4 in (await steps_taken(upstream)).values()
    await far.close()


async def test_tinker_sends_again_under_the_same_number(start_upstream: StartUpstream) -> None:
    upstream = await start_upstream("tinker")
    upstream.proxy.script = each_once(Fault("lose"), "optim_step")
    far = await started(upstream)
    await make(far)
    await steps(far, range(3))
    sent = [seen.body for seen in upstream.proxy.seen if seen.path.endswith("/optim_step")]
    assert len(sent) == 6
    assert sent[::2] == sent[1::2]
    assert list((await steps_taken(upstream)).values()) == [3]
    await far.close()


@pytest.mark.parametrize("kind", HARMLESS)
async def test_mint_goes_on_after_what_was_surely_not_done(
    kind: str, start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("mint")
    upstream.proxy.script = each_once(HARMLESS[kind])
    far = await started(upstream)
    await program(far)
    await program(near)
    assert (await fingerprint(far) == await fingerprint(near)).all()
    assert upstream.asked("optim_step") == 4
    await far.close()


@pytest.mark.parametrize("kind", DOUBTFUL)
async def test_mint_goes_on_where_doing_it_twice_is_as_good_as_once(
    kind: str, start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("mint")
    mistreat = each_once(DOUBTFUL[kind])
    spared = tuple(f"/api/v1/{route}" for route in TRAINING)
    upstream.proxy.script = lambda seen: None if seen.path in spared else mistreat(seen)
    far = await started(upstream)
    await program(far)
    await program(near)
    assert (await fingerprint(far) == await fingerprint(near)).all()
    assert upstream.asked("optim_step") == 4
    await far.close()


@pytest.mark.parametrize("route", TRAINING)
@pytest.mark.parametrize("kind", DOUBTFUL)
async def test_mint_sends_no_step_twice(
    kind: str, route: str, start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("mint")
    far = await started(upstream)
    await make(far)
    await steps(far, range(1))
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    upstream.proxy.script = each_once(DOUBTFUL[kind], route)
    request = batch(seed=1) if route == "forward_backward" else step()
    if route == "optim_step":
        await run(far, batch(seed=1))
    with pytest.raises(GatewayError, match="may or may not have been done") as raised:
        await run(far, request)
    assert raised.value.kind is Kind.OUTCOME_UNKNOWN
    assert raised.value.backend == "far"
    assert route in raised.value.message
    assert "LoadState" in raised.value.message
    sent = [seen for seen in upstream.proxy.seen if seen.path == f"/api/v1/{route}"]
    assert len(sent) == 2  # the one before, and this one: once

    # A gradient in doubt must not be stepped by, and weights in doubt not be saved.
    for refused in (step(), batch(), SaveStateRequest(model_id=MODEL, name="doubtful")):
        with pytest.raises(GatewayError, match="LoadState") as raised:
            await run(far, refused)
        assert raised.value.kind is Kind.PRECONDITION
    assert len([seen for seen in upstream.proxy.seen if seen.path == f"/api/v1/{route}"]) == 2

    # From the checkpoint on all is well, on a fresh model.
    upstream.proxy.script = lambda _: None
    loaded = await run(
        far,
        LoadStateRequest(model_id=MODEL, path=f"tinker://{MODEL}/weights/ck", with_optimizer=True),
    )
    assert loaded.optimizer_steps == 1
    await steps(far, range(1, 3))
    await make(near)
    await steps(near, range(3))
    assert (await fingerprint(far) == await fingerprint(near)).all()
    await far.close()


async def test_a_load_whose_answer_is_lost_is_made_good_on_a_fresh_model(
    start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("mint")
    far = await started(upstream)
    await make(far)
    await steps(far, range(2))
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    await steps(far, range(2, 3))
    # The first is the model's own; the second is of the fresh model that is to make it good.
    upstream.proxy.script = so_often(Fault("lose"), "load_weights", 2)
    await run(
        far,
        LoadStateRequest(model_id=MODEL, path=f"tinker://{MODEL}/weights/ck", with_optimizer=True),
    )
    await steps(far, range(7, 8))
    await make(near)
    await steps(near, range(2))
    await steps(near, range(7, 8))
    assert (await fingerprint(far) == await fingerprint(near)).all()
    await far.close()


async def test_a_future_that_the_service_lost_is_an_unknown_outcome(
    upstream: Upstream,
) -> None:
    far = await started(upstream)
    await make(far)
    upstream.proxy.script = each_once(Fault("status", status=410), "retrieve_future")
    with pytest.raises(GatewayError, match="the service has forgotten it") as raised:
        await run(far, batch())
    assert raised.value.kind is Kind.OUTCOME_UNKNOWN
    assert raised.value.metadata["upstream_request_id"] in raised.value.message
    with pytest.raises(GatewayError, match="LoadState"):
        await run(far, step())
    await far.close()


async def test_a_sample_call_that_the_service_lost_is_made_again(
    upstream: Upstream, near: LocalBackend
) -> None:
    far = await started(upstream)
    asked: dict[str, Any] = {
        "base_model": BASE,
        "prompt": ModelInput(chunks=chunks([1, 2, 3])),
        "sampling_params": drawing(4),
    }
    upstream.proxy.script = each_once(Fault("status", status=410), "retrieve_future")
    with pytest.raises(GatewayError, match="answered 410"):
        await sample(far, **asked)
    assert upstream.asked("asample") == 3
    upstream.proxy.script = so_often(Fault("status", status=410), "retrieve_future")
    assert await sample(far, **asked) == await sample(near, **asked)
    assert upstream.asked("asample") == 5
    await far.close()


async def test_a_sampler_that_the_service_forgot_is_made_again(
    upstream: Upstream, near: LocalBackend
) -> None:
    far = await started(upstream)
    asked: dict[str, Any] = {
        "base_model": BASE,
        "prompt": ModelInput(chunks=chunks([1, 2, 3])),
        "sampling_params": drawing(4),
    }
    upstream.proxy.script = so_often(Fault("status", status=404), "asample")
    assert await sample(far, **asked) == await sample(near, **asked)
    assert upstream.asked("create_sampling_session") == 2
    await far.close()


async def test_a_service_that_stays_away_is_given_up_in_time(upstream: Upstream) -> None:
    far = await started(upstream, retry_time=0.5)
    await make(far)
    upstream.proxy.script = lambda _: Fault("status", status=503)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(GatewayError, match="answered 503") as raised:
        await sample(
            far,
            base_model=BASE,
            prompt=ModelInput(chunks=chunks([1])),
            sampling_params=drawing(1),
        )
    assert raised.value.kind is Kind.UNAVAILABLE
    assert raised.value.reason == ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE
    with pytest.raises(GatewayError, match="may or may not have been done"):
        await run(far, step())
    assert loop.time() - begun < 5
    await far.close()


async def test_a_service_that_is_not_there_was_sent_nothing(
    start_upstream: StartUpstream,
) -> None:
    upstream = await start_upstream("mint")
    far = await started(upstream, retry_time=0.5)
    await make(far)
    await upstream.proxy.__aexit__()
    with pytest.raises(GatewayError, match="cannot be sent") as raised:
        await run(far, step())
    assert raised.value.kind is Kind.UNAVAILABLE
    assert raised.value.retryable
    # Nothing is in doubt, so the model would go on.
    with pytest.raises(GatewayError, match="cannot be sent"):
        await run(far, step())
    await far.close()


async def test_payment_is_waited_for_no_longer_than_is_set(upstream: Upstream) -> None:
    far = await started(upstream, billing_pause=0.1)
    await make(far)
    upstream.proxy.script = lambda _: Fault("status", status=402)
    with pytest.raises(GatewayError, match="asks for payment") as raised:
        await run(far, step())
    assert raised.value.kind is Kind.EXHAUSTED
    assert "optim_step" in raised.value.message
    upstream.proxy.script = lambda _: None
    await run(far, step())
    await far.close()


async def test_a_refusal_keeps_the_number_for_the_next(upstream: Upstream) -> None:
    far = await started(upstream)
    await make(far)
    upstream.proxy.script = so_often(Fault("status", status=422), "optim_step")
    with pytest.raises(GatewayError, match="answered 422") as raised:
        await run(far, step())
    assert raised.value.kind is Kind.INVALID
    await run(far, batch())
    await run(far, step())
    assert list((await steps_taken(upstream)).values()) == [1]
    await far.close()


async def test_a_key_that_is_not_taken_is_told_without_it(start_upstream: StartUpstream) -> None:
    upstream = await start_upstream("tinker")
    backend = upstream.backend(api_key="tml-of-somebody-else")
    with pytest.raises(GatewayError, match="does not take the gateway's key") as raised:
        await backend.start()
    assert "somebody" not in raised.value.message
    assert "somebody" not in repr(backend._settings)
    await backend.close()


def test_the_wait_that_is_asked_for_is_believed_up_to_a_minute() -> None:
    assert failures.retry_after({"retry-after": "2"}) == 2
    assert failures.retry_after({"retry-after-ms": "250", "retry-after": "2"}) == 0.25
    assert failures.retry_after({"retry-after": "61"}) is None
    assert failures.retry_after({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) is None
    assert failures.retry_after({}) is None
