"""Starting, stopping, and what is left after it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinkergate.core.gateway import Gateway
from tinkergate.errors import GatewayError, Kind
from tinkergate.store import Store
from tinkergate.v1 import (
    CheckpointSource,
    CreateModelRequest,
    CreateSessionRequest,
    ErrorReason,
    GetModelRequest,
    GetOperationRequest,
    GetSessionRequest,
    HeartbeatSessionRequest,
    ListCheckpointsRequest,
    ModelState,
    OperationState,
    SampleRequest,
    SaveStateRequest,
    SessionState,
    UnloadModelRequest,
)


async def crash(house: Any) -> None:
    """End a gateway as a kill would, but for what the store had still to write."""
    await house.gateway._store.flush()
    house.gateway._reaper.cancel()
    await asyncio.wait([house.gateway._reaper])
    house.gateway._store.close()
    await house.backend.close()


async def test_after_a_crash_all_is_told_as_it_is(open_house: Any, make: Any) -> None:
    house = await open_house()
    model = await house.model()
    session_id = model.split(":")[0]
    submit = house.gateway.training.submit
    done = await submit(make.forward_backward(model, 3.0, 1))
    before = await house.wait(done)
    saved = await house.wait(await submit(SaveStateRequest(model_id=model, seq_id=2, name="a")))
    house.backend.fail_run[3] = ValueError("x")
    failed = await submit(make.forward_backward(model, 1.0, 3))
    failed_before = await house.wait(failed)
    house.backend.gate.clear()
    queued = await submit(make.forward_backward(model, 1.0, 4))
    parked = await submit(make.forward_backward(model, 1.0, 6))
    await crash(house)

    again = await open_house(backend=revived(house.backend))
    get = again.gateway.operations.get
    assert (await get(GetOperationRequest(name=done.name))).operation == before
    assert (await again.wait(failed)) == failed_before
    for operation in (queued, parked):
        lost = await again.wait(operation)
        assert lost.state == OperationState.OPERATION_STATE_FAILED
        assert lost.error.reason == ErrorReason.ERROR_REASON_MODEL_NOT_READY
        assert "restarted" in lost.error.message
        assert not lost.error.retryable
    got = (await again.gateway.models.get(GetModelRequest(model_id=model))).model
    assert got.state == ModelState.MODEL_STATE_LOST
    assert got.last_checkpoint == saved.save_state.path
    session = await again.gateway.sessions.get(GetSessionRequest(session_id=session_id))
    assert session.session.state == SessionState.SESSION_STATE_EXPIRED
    assert list(session.session.model_ids) == [model]
    repeat = await again.gateway.training.submit(make.forward_backward(model, 3.0, 1))
    assert repeat.name == done.name
    with pytest.raises(GatewayError) as caught:
        await again.gateway.training.submit(make.forward_backward(model, 3.0, 7))
    assert caught.value.metadata["state"] == "lost"
    gone = await again.wait(await again.gateway.models.unload(UnloadModelRequest(model_id=model)))
    assert gone.unload_model.model_id == model
    resumed = await again.model(
        base_model=None, checkpoint=CheckpointSource(path=saved.save_state.path)
    )
    assert resumed != model


def revived(backend: Any) -> Any:
    """The backend of the next run: what was on disk is still there, all else is gone."""
    new = type(backend)(folder=backend.folder)
    new.saved = backend.saved
    return new


async def test_checkpoints_are_reconciled_with_what_the_backend_holds(open_house: Any) -> None:
    house = await open_house()
    model = await house.model()
    for name in ("kept", "lost"):
        await house.wait(
            await house.gateway.training.submit(
                SaveStateRequest(model_id=model, name=name, user_metadata={"n": name})
            )
        )
    await house.gateway.close(1)
    backend = revived(house.backend)
    backend.saved.pop(f"tinker://{model}/weights/lost")
    backend.saved[f"tinker://{model}/weights/found"] = backend.saved[
        f"tinker://{model}/weights/kept"
    ]
    again = await open_house(backend=backend)
    listed = (await again.gateway.checkpoints.list(ListCheckpointsRequest())).checkpoints
    assert {c.path.rpartition("/")[2]: dict(c.user_metadata) for c in listed} == {
        "kept": {"n": "kept"},
        "found": {},
    }
    found = next(c for c in listed if c.path.endswith("found"))
    assert (found.model_id, found.checkpoint_id) == (model, "weights/found")


async def test_results_of_an_earlier_run_expire_too(open_house: Any, make: Any) -> None:
    house = await open_house()
    model = await house.model()
    operations = [
        await house.gateway.training.submit(make.forward_backward(model, 1.0, n)) for n in (1, 2)
    ]
    for operation in operations:
        await house.wait(operation)
    await house.gateway.close(1)
    again = await open_house(backend=revived(house.backend), result_retention=100)
    assert (await again.wait(operations[0])).HasField("forward_backward")
    again.clock.seconds += 101
    await again.gateway.reap()
    for operation in operations:
        assert (await again.wait(operation)).result_expired


async def test_two_askers_share_one_reading_of_a_stored_result(open_house: Any, make: Any) -> None:
    house = await open_house()
    model = await house.model()
    operation = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    await house.wait(operation)
    await house.gateway.close(1)
    again = await open_house(backend=revived(house.backend))
    both = await asyncio.gather(again.wait(operation), again.wait(operation))
    assert both[0] == both[1]
    assert both[0].forward_backward.metrics["loss:sum"] == 1.0


async def test_a_closing_gateway_finishes_what_runs_and_takes_nothing_new(
    open_house: Any, make: Any
) -> None:
    house = await open_house()
    model = await house.model()
    session_id = model.split(":")[0]
    house.backend.gate.clear()
    running = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    parked = await house.gateway.training.submit(make.forward_backward(model, 1.0, 3))
    closing = asyncio.create_task(house.gateway.close(30))
    await asyncio.sleep(0)
    for call in (
        house.gateway.sessions.create(CreateSessionRequest()),
        house.gateway.models.create(CreateModelRequest(session_id=session_id, base_model="small")),
        house.gateway.training.submit(make.forward_backward(model, 1.0, 2)),
        house.gateway.sampling.sample(SampleRequest(base_model="small", prompt=_prompt(make))),
    ):
        with pytest.raises(GatewayError) as caught:
            await call
        assert caught.value.reason == ErrorReason.ERROR_REASON_SHUTTING_DOWN
    await house.gateway.sessions.heartbeat(HeartbeatSessionRequest(session_id=session_id))
    repeat = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    assert repeat.name == running.name
    # What it waits for is not taken any more.
    assert (await house.wait(parked)).error.reason == ErrorReason.ERROR_REASON_SHUTTING_DOWN
    waiting = asyncio.create_task(house.wait(running))
    await asyncio.sleep(0)
    house.backend.gate.set()
    assert (await waiting).state == OperationState.OPERATION_STATE_SUCCEEDED
    await closing
    assert house.backend.events[-1] == "close"


def _prompt(make: Any) -> Any:
    return {"chunks": make.datum([1.0]).model_input}


async def test_what_does_not_end_in_time_is_stopped(open_house: Any, make: Any) -> None:
    house = await open_house(pipeline_depth=1)
    model = await house.model()
    house.backend.gate.clear()
    house.backend.sample_gate.clear()
    operations = [
        await house.gateway.training.submit(make.forward_backward(model, 1.0, n)) for n in (1, 2, 4)
    ]
    sampling = asyncio.create_task(
        house.gateway.sampling.sample(SampleRequest(base_model="small", prompt=_prompt(make)))
    )
    waiting = [asyncio.create_task(house.wait(operation)) for operation in operations]
    await house.until(lambda: house.backend.samples_begun == 1)
    await house.gateway.close(0)
    outcomes = [(await task).error.reason for task in waiting]
    assert outcomes[1:] == [ErrorReason.ERROR_REASON_SHUTTING_DOWN] * 2
    with pytest.raises(GatewayError) as caught:
        await sampling
    assert caught.value.kind is Kind.UNAVAILABLE


async def test_capabilities(house: Any) -> None:
    response = await house.gateway.capabilities()
    assert response.gateway_version
    assert [backend.name for backend in response.backends] == ["books"]
    assert response.models[0].name == "accounts/small"
    assert response.default_model == "accounts/small"
    assert response.limits.max_queued_operations == 1024
    assert response.limits.result_retention.seconds == 3600
    assert response.limits.gap_timeout.seconds == 120


async def test_a_start_that_fails_closes_what_it_opened(open_house: Any, tmp_path: Any) -> None:
    house = await open_house()
    await house.gateway.close(0)
    first, second = revived(house.backend), revived(house.backend)
    second.name = "broken"

    async def broken(known: Any) -> None:
        raise RuntimeError("a fault of ours")

    second.start = broken
    store = Store(f"sqlite:///{tmp_path}/gateway.db")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await Gateway([first, second], store).start()
    assert first.events == ["start", "close"]
    assert second.events == ["close"]
    with pytest.raises(GatewayError, match="store is closed"):
        store.load()
