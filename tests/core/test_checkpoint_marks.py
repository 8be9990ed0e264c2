"""Checkpoints that are published, given another end, or told to callers who count by offset."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    Checkpoint,
    ErrorReason,
    GetCheckpointRequest,
    LoraConfig,
    OptimizerConfig,
    PublishCheckpointRequest,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SetCheckpointTtlRequest,
    UnpublishCheckpointRequest,
)


async def save(house: Any, model: str, name: str = "a", **fields: Any) -> str:
    submit = house.gateway.training.submit
    operation = await submit(SaveStateRequest(model_id=model, name=name, **fields))
    path: str = (await house.wait(operation)).save_state.path
    return path


async def get(house: Any, path: str) -> Checkpoint:
    response = await house.gateway.checkpoints.get(GetCheckpointRequest(path=path))
    checkpoint: Checkpoint = response.checkpoint
    return checkpoint


async def test_published_and_not(house: Any, open_house: Any) -> None:
    path = await save(house, await house.model())
    before = await get(house, path)
    publish, unpublish = PublishCheckpointRequest(path=path), UnpublishCheckpointRequest(path=path)
    with pytest.raises(GatewayError, match="is not public") as caught:
        await house.gateway.checkpoints.unpublish(unpublish)
    assert caught.value.kind is Kind.CONFLICT
    assert caught.value.reason == ErrorReason.ERROR_REASON_NO_CHANGE
    answered = (await house.gateway.checkpoints.publish(publish)).checkpoint
    assert answered.public
    assert await get(house, path) == answered
    assert not before.public  # an answer that was given does not change
    with pytest.raises(GatewayError, match="is public already"):
        await house.gateway.checkpoints.publish(publish)
    await house.gateway.close(5)
    again = await open_house(backend=house.backend)
    assert (await get(again, path)).public
    assert not (await again.gateway.checkpoints.unpublish(unpublish)).checkpoint.public


async def test_another_end(house: Any) -> None:
    path = await save(house, await house.model(), ttl={"seconds": 60})
    set_ttl = house.gateway.checkpoints.set_ttl
    house.clock.seconds += 30
    answered = await set_ttl(SetCheckpointTtlRequest(path=path, ttl={"seconds": 100}))
    assert answered.checkpoint.expire_time.seconds == house.clock.seconds + 100
    house.clock.seconds += 99
    await house.gateway.reap()
    assert path in house.backend.saved
    answered = await set_ttl(SetCheckpointTtlRequest(path=path))
    assert not answered.checkpoint.HasField("expire_time")
    house.clock.seconds += 1e6
    await house.gateway.reap()
    assert path in house.backend.saved
    await set_ttl(SetCheckpointTtlRequest(path=path, ttl={"nanos": 1}))
    house.clock.seconds += 1
    await house.gateway.reap()
    assert path not in house.backend.saved


@pytest.mark.parametrize("ttl", [{}, {"seconds": -1}, {"seconds": 1 << 40}])
async def test_bad_ends(house: Any, ttl: dict[str, int]) -> None:
    path = await save(house, await house.model())
    with pytest.raises(GatewayError) as caught:
        await house.gateway.checkpoints.set_ttl(SetCheckpointTtlRequest(path=path, ttl=ttl))
    assert [violation.field for violation in caught.value.violations] == ["ttl"]


async def test_marks_of_what_is_not_there(house: Any) -> None:
    checkpoints = house.gateway.checkpoints
    for path, reason in (
        ("tinker://s:train:0/weights/a", ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND),
        ("weights/a", ErrorReason.ERROR_REASON_INVALID_FIELD),
    ):
        for call, request in (
            (checkpoints.publish, PublishCheckpointRequest(path=path)),
            (checkpoints.unpublish, UnpublishCheckpointRequest(path=path)),
            (checkpoints.set_ttl, SetCheckpointTtlRequest(path=path)),
        ):
            with pytest.raises(GatewayError) as caught:
                await call(request)
            assert caught.value.reason == reason


async def test_windows(house: Any) -> None:
    model, other = await house.model(), await house.model()
    saved = [await save(house, m, n) for m, n in ((model, "a"), (other, "b"), (model, "c"))]
    found = house.gateway.checkpoints.window(1, 1)
    assert [checkpoint.path for checkpoint in found.items] == [saved[1]]
    assert (found.offset, found.limit, found.total) == (1, 1, 3)
    found = house.gateway.checkpoints.window(0, 10, model)
    assert [checkpoint.path for checkpoint in found.items] == [saved[2], saved[0]]
    assert house.gateway.checkpoints.window(5, 10).items == []
    with pytest.raises(GatewayError, match="limit: is -1"):
        house.gateway.checkpoints.window(0, -1)


async def test_what_a_save_tells_of_adapter_and_optimizer(house: Any) -> None:
    model = await house.model(lora_config={"rank": 4})
    request = SaveWeightsExternalRequest(model_id=model, name="out")
    result = (await house.wait(await house.gateway.training.submit(request))).save_weights_external
    assert result.path == f"tinker://{model}/external_weights/out"
    assert result.size_bytes == 4
    for path in (result.path, await save(house, model)):
        checkpoint = await get(house, path)
        assert checkpoint.lora_config == LoraConfig(rank=4, seed=1, alpha=32.0)
        assert checkpoint.optimizer_config == OptimizerConfig(type="adamw")


async def test_what_an_earlier_version_did_not_note_is_filled_in(
    house: Any, open_house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await save(house, await house.model())
    registry = house.gateway._registry
    bare = Checkpoint()
    bare.CopyFrom(registry.require(path).message)
    bare.ClearField("lora_config")
    registry.change(registry.require(path), bare)
    await house.gateway.close(5)
    lora = LoraConfig(rank=8, train_mlp=True)

    async def held() -> list[Checkpoint]:
        await asyncio.sleep(0)
        return [Checkpoint(path=path, lora_config=lora, optimizer_config={"type": "adamw"})]

    monkeypatch.setattr(house.backend, "checkpoints", held)
    again = await open_house(backend=house.backend)
    found = await get(again, path)
    assert found.lora_config == lora
    assert found.size_bytes == 8  # the rest stays as it was noted
