from __future__ import annotations

from typing import Any

import pytest

from tinkergate.errors import GatewayError
from tinkergate.v1 import (
    CopyCheckpointRequest,
    CreateSessionRequest,
    DeleteCheckpointRequest,
    ErrorReason,
    FinishSessionRequest,
    GetModelRequest,
    ModelState,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    SetSessionProjectRequest,
)


async def save(house: Any, request: Any) -> str:
    done = await house.wait(await house.gateway.training.submit(request))
    path: str = (done.save_state or done.save_weights_for_sampler).path
    return path or str(done.save_weights_for_sampler.path)


async def test_a_run_tells_its_newest_checkpoints(house: Any) -> None:
    model = await house.model()
    runs = house.gateway.training_runs
    assert runs.get(model).last_checkpoint is None
    for name in ("a", "b"):
        await save(house, SaveStateRequest(model_id=model, name=name))
    await save(house, SaveWeightsForSamplerRequest(model_id=model, name="s"))
    run = runs.get(model)
    assert run.model.state == ModelState.MODEL_STATE_READY
    assert run.last_checkpoint.checkpoint_id == "weights/b"
    assert run.last_sampler_checkpoint.checkpoint_id == "sampler_weights/s"
    path = run.last_checkpoint.path
    await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
    assert runs.get(model).last_checkpoint.checkpoint_id == "weights/a"
    assert runs.window(0, 10).items == [runs.get(model)]


async def test_a_model_names_no_checkpoint_that_is_gone(open_house: Any) -> None:
    house = await open_house()
    model = await house.model()

    async def told(house: Any) -> list[str]:
        got = (await house.gateway.models.get(GetModelRequest(model_id=model))).model
        paths = (got.last_checkpoint, got.last_sampler_checkpoint)
        return [path.removeprefix(f"tinker://{model}/") for path in paths]

    paths = [await save(house, SaveStateRequest(model_id=model, name=n)) for n in ("a", "b", "c")]
    kept = await save(house, SaveWeightsForSamplerRequest(model_id=model, name="s"))
    assert await told(house) == ["weights/c", "sampler_weights/s"]
    for path, left in ((paths[0], "weights/c"), (paths[2], "weights/b")):
        await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
        assert await told(house) == [left, "sampler_weights/s"]
    again = SaveStateRequest(model_id=model, name="b", overwrite=True)
    assert await save(house, again) == paths[1]
    assert await told(house) == ["weights/b", "sampler_weights/s"]
    for path in (paths[1], kept):
        await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
    assert await told(house) == ["", ""]
    await house.gateway.close(1)
    assert await told(await open_house()) == ["", ""]


async def test_runs_are_told_newest_first_in_windows(house: Any) -> None:
    models = []
    for _ in range(3):
        house.clock.seconds += 1
        models.append(await house.model())
    house.clock.seconds += 1
    path = await save(house, SaveStateRequest(model_id=models[0], name="a"))
    copied = await house.gateway.checkpoint_copies.copy(CopyCheckpointRequest(path=path))
    found = house.gateway.training_runs.window(0, 2)
    assert [run.model.model_id for run in found.items] == [copied.checkpoint.model_id, models[2]]
    assert found.total == 4
    found = house.gateway.training_runs.window(2, 9)
    assert [run.model.model_id for run in found.items] == [models[1], models[0]]


async def test_runs_of_a_project(house: Any) -> None:
    created = await house.gateway.sessions.create(CreateSessionRequest(project_id="p"))
    session = created.session.session_id
    model = await house.model(session)
    await house.model()
    window = house.gateway.training_runs.window
    assert [run.model.model_id for run in window(0, 9, "p").items] == [model]
    await house.gateway.sessions.set_project(SetSessionProjectRequest(session_id=session))
    assert window(0, 9, "p").total == 0


async def test_a_run_is_known_as_long_as_a_checkpoint_of_it_is(open_house: Any) -> None:
    house = await open_house(history_retention=100)
    model = await house.model(lora_config={"rank": 4})
    path = await save(house, SaveStateRequest(model_id=model, name="a"))
    session = model.split(":")[0]
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=session))
    await house.until(lambda: house.gateway._book.find_live(model) is None)
    house.clock.seconds += 101
    await house.gateway.reap()
    assert model not in house.gateway._book
    run = house.gateway.training_runs.get(model)
    assert run.model.state == ModelState.MODEL_STATE_UNLOADED
    assert (run.model.base_model, run.model.lora_config.rank) == ("accounts/small", 4)
    assert run.last_checkpoint.path == path
    await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
    with pytest.raises(GatewayError) as caught:
        house.gateway.training_runs.get(model)
    assert caught.value.reason == ErrorReason.ERROR_REASON_MODEL_NOT_FOUND
