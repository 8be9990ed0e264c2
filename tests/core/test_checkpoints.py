from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tinkergate.errors import GatewayError
from tinkergate.v1 import (
    CheckpointSource,
    CheckpointType,
    DeleteCheckpointRequest,
    ErrorReason,
    FilePiece,
    GetCheckpointRequest,
    ImportHeader,
    ListCheckpointsRequest,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)


async def save(house: Any, model: str, name: str, **fields: Any) -> str:
    operation = await house.gateway.training.submit(
        SaveStateRequest(model_id=model, name=name, **fields)
    )
    path: str = (await house.wait(operation)).save_state.path
    return path


async def paths(house: Any, **fields: Any) -> list[str]:
    response = await house.gateway.checkpoints.list(ListCheckpointsRequest(**fields))
    return [checkpoint.path for checkpoint in response.checkpoints]


async def test_what_is_saved_is_listed_newest_first(house: Any) -> None:
    model, other = await house.model(), await house.model()
    saved = [await save(house, m, n) for m, n in ((model, "a"), (other, "b"), (model, "c"))]
    assert await paths(house) == saved[::-1]
    assert await paths(house, model_id=model) == [saved[2], saved[0]]
    page = await house.gateway.checkpoints.list(ListCheckpointsRequest(page_size=2))
    assert await paths(house, page_size=2, page_token=page.next_page_token) == saved[:1]


async def test_a_checkpoint_tells_all_about_itself(house: Any) -> None:
    model = await house.model(lora_config={"rank": 4})
    path = await save(house, model, "a", ttl={"seconds": 60}, user_metadata={"k": "v"})
    got = (await house.gateway.checkpoints.get(GetCheckpointRequest(path=path))).checkpoint
    assert got.checkpoint_id == "weights/a"
    assert got.type == CheckpointType.CHECKPOINT_TYPE_TRAINING
    assert (got.model_id, got.base_model, got.backend) == (model, "accounts/small", "books")
    assert (got.lora_rank, got.size_bytes) == (4, 8)
    assert got.expire_time.seconds - got.create_time.seconds == 60
    assert dict(got.user_metadata) == {"k": "v"}
    operation = await house.gateway.training.submit(
        SaveWeightsForSamplerRequest(model_id=model, name="a")
    )
    sampler = (await house.wait(operation)).save_weights_for_sampler.path
    got = (await house.gateway.checkpoints.get(GetCheckpointRequest(path=sampler))).checkpoint
    assert got.checkpoint_id == "sampler_weights/a"
    assert got.type == CheckpointType.CHECKPOINT_TYPE_SAMPLER
    assert not got.HasField("expire_time")


async def test_delete(house: Any) -> None:
    path = await save(house, await house.model(), "a")
    await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
    assert house.backend.saved == {}
    for call, request in (
        (house.gateway.checkpoints.get, GetCheckpointRequest(path=path)),
        (house.gateway.checkpoints.delete, DeleteCheckpointRequest(path=path)),
    ):
        with pytest.raises(GatewayError) as caught:
            await call(request)
        assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND


async def test_time_runs_out(house: Any) -> None:
    model = await house.model()
    short = await save(house, model, "short", ttl={"seconds": 60})
    long = await save(house, model, "long", ttl={"seconds": 600})
    house.clock.seconds += 61
    await house.gateway.reap()
    assert await paths(house) == [long]
    assert short not in house.backend.saved


@pytest.mark.parametrize(
    "bad", ["", "weights/a", "tinker://m/other/a", "tinker://m/weights/", "tinker://m/weights/.a"]
)
async def test_bad_paths(house: Any, bad: str) -> None:
    with pytest.raises(GatewayError) as caught:
        await house.gateway.checkpoints.get(GetCheckpointRequest(path=bad))
    assert caught.value.violations[0].field == "path"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ".hidden"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": "ä"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"ttl": {"seconds": -1}}, "ttl"),
        ({"ttl": {}}, "ttl"),
        ({"ttl": {"seconds": 1 << 40}}, "ttl"),
    ],
)
async def test_bad_saves(house: Any, fields: dict[str, Any], field: str) -> None:
    model = await house.model()
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(SaveStateRequest(model_id=model, **fields))
    assert [violation.field for violation in caught.value.violations] == [field]


GOOD_CONFIG = json.dumps(
    {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "accounts/small"}
).encode()


async def pieces(*parts: tuple[str, bytes]) -> AsyncIterator[FilePiece]:
    for name, data in parts:
        yield FilePiece(name=name, data=data)


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


async def test_import(house: Any, tmp_path: Path) -> None:
    response = await house.gateway.checkpoints.import_(
        ImportHeader(name="mine", user_metadata={"k": "v"}),
        pieces(
            (CONFIG, GOOD_CONFIG[:9]), (WEIGHTS, b"abc"), (CONFIG, GOOD_CONFIG[9:]), (WEIGHTS, b"d")
        ),
    )
    checkpoint = response.checkpoint
    assert checkpoint.type == CheckpointType.CHECKPOINT_TYPE_TRAINING
    assert checkpoint.path == f"tinker://{checkpoint.model_id}/weights/mine"
    assert (checkpoint.base_model, checkpoint.lora_rank) == ("accounts/small", 4)
    assert checkpoint.size_bytes == 4
    assert await paths(house) == [checkpoint.path]
    model = await house.model(base_model=None, checkpoint=CheckpointSource(path=checkpoint.path))
    assert house.backend.accounts[model].value == 4.0
    with pytest.raises(GatewayError) as caught:
        await house.model(
            base_model=None,
            checkpoint=CheckpointSource(path=checkpoint.path, with_optimizer=True),
        )
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([(CONFIG, GOOD_CONFIG)], "adapter_model.safetensors is missing"),
        ([(WEIGHTS, b"x")], "adapter_config.json is missing"),
        ([(CONFIG, b"{"), (WEIGHTS, b"x")], "is not JSON"),
        ([(CONFIG, b"[]"), (WEIGHTS, b"x")], "is not a JSON object"),
        ([(CONFIG, b'{"peft_type": "IA3"}'), (WEIGHTS, b"x")], "must be LORA"),
        ([(CONFIG, b'{"peft_type": "LORA", "r": 0}'), (WEIGHTS, b"x")], "r 0"),
        ([(CONFIG, b'{"peft_type": "LORA", "r": 1}'), (WEIGHTS, b"x")], "header.base_model"),
        ([("../../evil", b"x")], "file.name"),
        ([(CONFIG, b" " * 2000)], "2000 bytes|1000 bytes"),
    ],
)
async def test_bad_imports_leave_nothing_behind(
    open_house: Any, tmp_path: Path, parts: list[tuple[str, bytes]], words: str
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    house = await open_house(max_import_bytes=1000, scratch_dir=scratch)
    with pytest.raises(GatewayError, match=words):
        await house.gateway.checkpoints.import_(ImportHeader(name="a"), pieces(*parts))
    assert await paths(house) == []
    assert list(scratch.iterdir()) == []


async def test_an_import_whose_caller_goes_away_leaves_nothing_behind(
    open_house: Any, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    house = await open_house(scratch_dir=scratch)
    begun = asyncio.Event()

    async def never_ending() -> AsyncIterator[FilePiece]:
        yield FilePiece(name=CONFIG, data=GOOD_CONFIG)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        house.gateway.checkpoints.import_(ImportHeader(name="a"), never_ending())
    )
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await paths(house) == []
    assert list(scratch.iterdir()) == []


async def test_a_header_that_is_bad(house: Any) -> None:
    for header, field in (
        (ImportHeader(), "header.name"),
        (ImportHeader(name="a", user_metadata={"": ""}), "user_metadata"),
    ):
        with pytest.raises(GatewayError) as caught:
            await house.gateway.checkpoints.import_(header, pieces())
        assert [violation.field for violation in caught.value.violations] == [field]
