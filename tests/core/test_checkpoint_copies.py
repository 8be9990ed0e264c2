from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    Checkpoint,
    CheckpointSource,
    CopyCheckpointRequest,
    CreateModelRequest,
    DeleteCheckpointRequest,
    ErrorReason,
    FinishSessionRequest,
    GetModelRequest,
    GetSessionRequest,
    ListModelsRequest,
    ModelState,
    PublishCheckpointRequest,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)


async def saved(house: Any, **fields: Any) -> str:
    model = await house.model(lora_config={"rank": 4})
    request = SaveStateRequest(model_id=model, name="a", **fields)
    operation = await house.gateway.training.submit(request)
    path: str = (await house.wait(operation)).save_state.path
    return path


async def copy(house: Any, path: str, **fields: Any) -> Checkpoint:
    request = CopyCheckpointRequest(path=path, **fields)
    response = await house.gateway.checkpoint_copies.copy(request)
    copied: Checkpoint = response.checkpoint
    return copied


async def test_a_copy_lives_on_without_its_original(house: Any) -> None:
    path = await saved(house, ttl={"seconds": 60}, user_metadata={"k": "v"})
    await house.gateway.checkpoints.publish(PublishCheckpointRequest(path=path))
    house.clock.seconds += 5
    copied = await copy(house, path)
    assert copied.path == f"tinker://{copied.model_id}/weights/a"
    assert copied.model_id.startswith("c-")
    assert copied.copied_from == path
    assert copied.create_time.seconds == house.clock.seconds
    assert not copied.HasField("expire_time")
    assert not copied.public
    assert dict(copied.user_metadata) == {"k": "v"}
    assert (copied.lora_rank, copied.size_bytes, copied.backend) == (4, 8, "books")
    await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
    source = CheckpointSource(path=copied.path, with_optimizer=True)
    await house.model(base_model=None, checkpoint=source)


async def test_a_copy_of_sampler_weights_is_of_that_kind(house: Any) -> None:
    model = await house.model()
    request = SaveWeightsForSamplerRequest(model_id=model, name="s")
    await house.wait(await house.gateway.training.submit(request))
    copied = await copy(house, f"tinker://{model}/sampler_weights/s", ttl={"seconds": 60})
    assert copied.checkpoint_id == "sampler_weights/s"
    house.clock.seconds += 61
    await house.gateway.reap()
    assert copied.path not in house.backend.saved


async def test_a_copy_in_a_session_has_a_run_that_cannot_be_trained_on(
    house: Any, open_house: Any, make: Any
) -> None:
    path = await saved(house)
    session = await house.session()
    copied = await copy(house, path, session_id=session, model_seq_id=3)
    run = f"{session}:train:3"
    assert copied.path == f"tinker://{run}/weights/a"
    model = (await house.gateway.models.get(GetModelRequest(model_id=run))).model
    assert model.state == ModelState.MODEL_STATE_UNLOADED
    assert path in model.notes[0]
    assert model.lora_config.rank == 4
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(run, 1.0))
    assert caught.value.reason == ErrorReason.ERROR_REASON_MODEL_NOT_READY
    # The number is taken, and the gateway's own count goes round it.
    with pytest.raises(GatewayError) as caught:
        await house.gateway.models.create(
            CreateModelRequest(session_id=session, base_model="small", model_seq_id=3)
        )
    assert caught.value.kind is Kind.CONFLICT
    assert (await copy(house, path, session_id=session)).model_id == f"{session}:train:0"
    assert await house.model(session) == f"{session}:train:1"
    got = await house.gateway.sessions.get(GetSessionRequest(session_id=session))
    assert list(got.session.model_ids) == [run, f"{session}:train:0", f"{session}:train:1"]
    await house.gateway.close(5)
    again = await open_house(backend=house.backend)
    assert await copy(again, path, session_id=session, model_seq_id=3) == copied


async def test_a_repeat_answers_the_same_copy(house: Any) -> None:
    path, other = await saved(house), await saved(house)
    session = await house.session()
    asked = {"session_id": session, "model_seq_id": 0}
    house.backend.create_gate.clear()
    both = [asyncio.ensure_future(copy(house, path, **asked)) for _ in range(2)]
    await asyncio.sleep(0.01)
    house.backend.create_gate.set()
    first, second = await asyncio.gather(*both)
    assert first == second
    # Also once the original is gone and the session is over.
    await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=session))
    assert await copy(house, path, **asked) == first
    assert house.backend.events.count(f"copy {path}") == 1
    with pytest.raises(GatewayError, match="model_seq_id 0") as caught:
        await copy(house, other, **asked)
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT


async def test_a_copy_that_failed_leaves_its_number_free(house: Any) -> None:
    path = await saved(house)
    session = await house.session()
    house.backend.fail_create = GatewayError(
        Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE, "down"
    )
    with pytest.raises(GatewayError, match="down"):
        await copy(house, path, session_id=session, model_seq_id=0)
    listed = await house.gateway.models.list(ListModelsRequest(session_id=session))
    assert not listed.models
    house.backend.fail_create = None
    await copy(house, path, session_id=session, model_seq_id=0)


async def test_a_caller_who_goes_away_does_not_undo_the_copy(house: Any) -> None:
    path = await saved(house)
    session = await house.session()
    house.backend.create_gate.clear()
    copying = asyncio.ensure_future(copy(house, path, session_id=session, model_seq_id=0))
    await asyncio.sleep(0.01)
    copying.cancel()
    await asyncio.sleep(0.01)
    house.backend.create_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await copying
    made = await copy(house, path, session_id=session, model_seq_id=0)
    assert made.path in house.backend.saved
    assert house.backend.events.count(f"copy {path}") == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"path": "a"}, "path"),
        ({"model_seq_id": 0}, "model_seq_id"),
        ({"session_id": "s", "model_seq_id": -1}, "model_seq_id"),
        ({"ttl": {}}, "ttl"),
    ],
)
async def test_bad_copies(house: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(GatewayError) as caught:
        await copy(house, **{"path": "tinker://s:train:0/weights/a", **fields})
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_copies_of_nothing_and_to_nowhere(house: Any) -> None:
    path = await saved(house)
    with pytest.raises(GatewayError) as caught:
        await copy(house, path + "2")
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    with pytest.raises(GatewayError) as caught:
        await copy(house, path, session_id="s-none", model_seq_id=0)
    assert caught.value.reason == ErrorReason.ERROR_REASON_SESSION_NOT_FOUND
