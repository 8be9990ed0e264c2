"""External weights, copies and the files of checkpoints, on the embedded engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

import pytest
from local_backend import BASE, MODEL, batch, make_backend, make_model, run, score, step, train
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tinkergate.backends.base import ModelSpec, SavedCheckpoint
from tinkergate.backends.local import stored_checkpoints
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.errors import GatewayError
from tinkergate.v1 import (
    Checkpoint,
    CheckpointSource,
    CheckpointType,
    ErrorReason,
    LoraConfig,
    OptimizerConfig,
    SaveStateRequest,
    SaveWeightsExternalRequest,
)

STATE = f"tinker://{MODEL}/weights/a"
COPY = "tinker://s-2:train:0/weights/a"


async def saved_state(backend: LocalBackend) -> SavedCheckpoint:
    await make_model(backend)
    await train(backend)
    saved: SavedCheckpoint = await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    return saved


async def read(backend: LocalBackend, path: str, name: str, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in backend.read_checkpoint_file(path, name, offset)])


def folder(root: Path, path: str) -> Path:
    model, kind, name = path.removeprefix("tinker://").split("/")
    return root / "checkpoints" / quote(model, safe="") / kind / name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own call
async def test_external_weights_are_a_peft_adapter(
    backend: LocalBackend, micro_model_dir: Path, tmp_path: Path
) -> None:
    # PEFT warns of an adapted unembedding that is tied to the embedding.
    await make_model(backend, train_unembed=False)
    await train(backend)
    request = SaveWeightsExternalRequest(model_id=MODEL, name="out", user_metadata={"k": "v"})
    saved = await run(backend, request)
    path = f"tinker://{MODEL}/external_weights/out"
    assert not saved.has_optimizer
    [listed] = await backend.checkpoints()
    assert listed.path == path
    assert listed.type == CheckpointType.CHECKPOINT_TYPE_EXTERNAL
    assert listed.size_bytes == saved.size_bytes
    assert dict(listed.user_metadata) == {"k": "v"}
    names = [file.name for file in await backend.checkpoint_files(path)]
    assert names == ["adapter_config.json", "adapter_model.safetensors", "tinkergate.json"]

    taken = tmp_path / "taken"
    taken.mkdir()
    for name in names:
        (taken / name).write_bytes(await read(backend, path, name))
    base = AutoModelForCausalLM.from_pretrained(micro_model_dir)
    adapted = PeftModel.from_pretrained(base, taken)
    ours = load_file(folder(tmp_path, path) / "adapter_model.safetensors")
    assert any(weight.any() for key, weight in ours.items() if "lora_B" in key)
    theirs = adapted.state_dict()
    for key, weight in ours.items():
        name = key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        assert theirs[name].equal(weight)


async def test_what_is_found_on_disk_tells_its_adapter_and_optimizer(
    backend: LocalBackend, micro_model_dir: Path, tmp_path: Path
) -> None:
    await make_model(backend, seed=7, train_unembed=False, alpha=16.0)
    await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    await backend.close()
    again = make_backend(micro_model_dir, tmp_path)
    await again.start()
    [found] = await again.checkpoints()
    assert found.lora_config == LoraConfig(
        rank=4, alpha=16.0, seed=7, train_mlp=True, train_attn=True, train_unembed=False
    )
    assert found.optimizer_config == OptimizerConfig(type="adamw")
    await again.close()


async def test_a_copy_outlives_its_original_and_holds_the_disk_once(
    backend: LocalBackend, tmp_path: Path
) -> None:
    saved = await saved_state(backend)
    described = Checkpoint(path=COPY, base_model=BASE, copied_from=STATE)
    copied = await backend.copy_checkpoint(STATE, described)
    assert copied.has_optimizer
    original, copy = folder(tmp_path, STATE), folder(tmp_path, COPY)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (original / name).samefile(copy / name)
    assert not (original / "tinkergate.json").samefile(copy / "tinkergate.json")
    before = await score(backend, range(30), model_path=STATE)
    await backend.delete_checkpoint(STATE)
    after = await score(backend, range(30), model_path=COPY)
    assert before.tobytes() == after.tobytes()
    [left] = await backend.checkpoints()
    assert (left.path, left.copied_from) == (COPY, STATE)
    assert left.size_bytes == copied.size_bytes != saved.size_bytes  # the record says more

    # The optimizer goes on from the copy as the original does.
    source = CheckpointSource(path=COPY, with_optimizer=True)
    facts = await backend.create_model(
        ModelSpec("s-3:train:0", BASE, LoraConfig(), OptimizerConfig(), checkpoint=source)
    )
    assert facts.optimizer_steps == 2
    for model in (MODEL, "s-3:train:0"):
        await run(backend, batch(model, seed=9))
        await run(backend, step(model))
        await run(backend, SaveStateRequest(model_id=model, name="on"))
    ours, theirs = (
        (folder(tmp_path, f"tinker://{model}/weights/on") / "adapter_model.safetensors")
        for model in (MODEL, "s-3:train:0")
    )
    assert ours.read_bytes() == theirs.read_bytes()


async def test_copies_that_cannot_be_made(backend: LocalBackend) -> None:
    await saved_state(backend)
    with pytest.raises(GatewayError) as caught:
        await backend.copy_checkpoint(f"tinker://{MODEL}/weights/b", Checkpoint(path=COPY))
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    await backend.copy_checkpoint(STATE, Checkpoint(path=COPY))
    with pytest.raises(GatewayError) as caught:
        await backend.copy_checkpoint(STATE, Checkpoint(path=COPY))
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_EXISTS


async def test_files_are_listed_and_read_from_any_offset(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_checkpoints, "PIECE_BYTES", 1000)
    saved = await saved_state(backend)
    files = await backend.checkpoint_files(STATE)
    assert sum(file.size_bytes for file in files) == saved.size_bytes
    for file in files:
        whole = await read(backend, STATE, file.name)
        assert len(whole) == file.size_bytes
        assert hashlib.sha256(whole).digest() == file.sha256
        assert await read(backend, STATE, file.name, 17) == whole[17:]
        assert await read(backend, STATE, file.name, len(whole)) == b""


@pytest.mark.parametrize("name", ["", "b", "../b/tinkergate.json", "/etc/passwd", "."])
async def test_only_listed_files_are_read(backend: LocalBackend, name: str) -> None:
    await saved_state(backend)
    await run(backend, SaveStateRequest(model_id=MODEL, name="b"))
    with pytest.raises(GatewayError, match="has no file"):
        await read(backend, STATE, name)
