"""The embedded engine through the Backend protocol: what is saved, loaded, frozen and imported."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from local_backend import (
    BASE,
    MODEL,
    batch,
    chunks,
    drawing,
    make_backend,
    make_model,
    run,
    sample,
    score,
    train,
)

from tinkergate.backends.base import (
    LoadedState,
    ModelSpec,
    SamplerReady,
    SamplerSpec,
    SavedCheckpoint,
)
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    Checkpoint,
    CheckpointSource,
    CheckpointType,
    ErrorReason,
    LoadStateRequest,
    LoraConfig,
    ModelInput,
    OptimizerConfig,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)


async def test_a_sampler_is_a_snapshot_to_the_bit(backend: LocalBackend) -> None:
    await make_model(backend)
    await train(backend)
    request = SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=4)
    assert isinstance(await run(backend, request), SamplerReady)
    sampler = "s-1:sample:4"
    before = await score(backend, range(40), sampler_id=sampler)
    drawn = await sample(
        backend,
        sampler_id=sampler,
        prompt=ModelInput(chunks=chunks([1, 2])),
        sampling_params=drawing(20),
    )
    await train(backend, steps=3)
    after = await score(backend, range(40), sampler_id=sampler)
    assert before.tobytes() == after.tobytes()
    again = await sample(
        backend,
        sampler_id=sampler,
        prompt=ModelInput(chunks=chunks([1, 2])),
        sampling_params=drawing(20),
    )
    assert drawn == again
    assert not np.allclose(before[1:], (await score(backend, range(40), base_model=BASE))[1:])
    await backend.close_sampler(sampler)
    with pytest.raises(GatewayError) as caught:
        await score(backend, range(40), sampler_id=sampler)
    assert caught.value.reason == ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND
    await backend.close_sampler("s-1:sample:99")


async def test_checkpoints_are_saved_found_loaded_and_removed(
    backend: LocalBackend, micro_model_dir: Path, tmp_path: Path
) -> None:
    await make_model(backend)
    await train(backend)
    saved = await run(
        backend, SaveStateRequest(model_id=MODEL, name="a", user_metadata={"note": "x"})
    )
    assert isinstance(saved, SavedCheckpoint)
    assert saved.has_optimizer
    named = SaveWeightsForSamplerRequest(model_id=MODEL, name="a")
    named.ttl.FromSeconds(3600)
    weights_only = await run(backend, named)
    assert not weights_only.has_optimizer
    assert weights_only.size_bytes < saved.size_bytes
    with pytest.raises(GatewayError) as caught:
        await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    assert caught.value.kind is Kind.CONFLICT

    # As another process finds them, beside what a killed save left.
    kind = tmp_path / "checkpoints" / "s-1%3Atrain%3A0" / "weights"
    leftover = kind / ".b.0123456789abcdef.partial"
    leftover.mkdir()
    (leftover / "adapter_config.json").write_text("{")
    other = make_backend(micro_model_dir, tmp_path)
    await other.start()
    assert not leftover.exists()
    found = {checkpoint.path: checkpoint for checkpoint in await other.checkpoints()}
    assert set(found) == {f"tinker://{MODEL}/weights/a", f"tinker://{MODEL}/sampler_weights/a"}
    training = found[f"tinker://{MODEL}/weights/a"]
    assert training.type == CheckpointType.CHECKPOINT_TYPE_TRAINING
    assert (training.base_model, training.lora_rank) == (BASE, 4)
    assert training.size_bytes == saved.size_bytes
    assert dict(training.user_metadata) == {"note": "x"}
    assert not training.HasField("expire_time")
    lasting = found[f"tinker://{MODEL}/sampler_weights/a"]
    assert lasting.expire_time.seconds - lasting.create_time.seconds == 3600

    await train(backend, steps=1)
    gone_on = await run(backend, batch(seed=9))
    facts = await other.create_model(
        ModelSpec(
            "s-2:train:0",
            BASE,
            LoraConfig(),
            OptimizerConfig(),
            checkpoint=CheckpointSource(path=training.path, with_optimizer=True),
        )
    )
    assert facts.optimizer_steps == 2
    assert facts.lora_config.seed == 1
    await train(other, "s-2:train:0", steps=1)
    resumed = await run(other, batch("s-2:train:0", seed=9))
    assert resumed == gone_on
    await other.close()

    for path in found:
        await backend.delete_checkpoint(path)
        await backend.delete_checkpoint(path)
    assert list(await backend.checkpoints()) == []


async def test_loading_a_state_into_a_model(backend: LocalBackend) -> None:
    await make_model(backend)
    await train(backend)
    path = f"tinker://{MODEL}/weights/a"
    await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    there = await run(backend, batch(seed=9))
    await train(backend)
    load = LoadStateRequest(model_id=MODEL, path=path, with_optimizer=True)
    assert await run(backend, load) == LoadedState(2)
    assert await run(backend, batch(seed=9)) == there
    load.with_optimizer = False
    assert await run(backend, load) == LoadedState(0)

    await make_model(backend, "s-1:train:1", alpha=8)
    with pytest.raises(GatewayError, match="alpha") as caught:
        await run(backend, LoadStateRequest(model_id="s-1:train:1", path=path))
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH
    with pytest.raises(GatewayError) as caught:
        await run(backend, LoadStateRequest(model_id=MODEL, path=f"tinker://{MODEL}/weights/no"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    await train(backend)


@pytest.mark.parametrize("kept", [0, 1, 8])
async def test_sampling_from_a_path_needs_no_sampler(
    micro_model_dir: Path, tmp_path: Path, kept: int
) -> None:
    backend = make_backend(micro_model_dir, tmp_path, snapshots_kept=kept)
    await backend.start()
    await make_model(backend)
    paths = []
    for name in "ab":
        await train(backend, steps=1)
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name=name))
        paths.append(f"tinker://{MODEL}/sampler_weights/{name}")
    first = [await score(backend, range(20), model_path=path) for path in paths]
    assert not np.allclose(first[0][1:], first[1][1:])
    # More paths than are kept, at the same time.
    again = await asyncio.gather(
        *(score(backend, range(20), model_path=path) for path in paths * 3)
    )
    for index, scores in enumerate(again):
        assert scores.tobytes() == first[index % 2].tobytes()

    # A sampler of a path keeps its weights when the checkpoint is replaced or removed.
    await backend.create_sampler(SamplerSpec("s-1:sample:0", BASE, paths[0]))
    await train(backend, steps=1)
    await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="a", overwrite=True))
    replaced = await score(backend, range(20), model_path=paths[0])
    assert not np.allclose(replaced[1:], first[0][1:])
    await backend.delete_checkpoint(paths[0])
    kept = await score(backend, range(20), sampler_id="s-1:sample:0")
    assert kept.tobytes() == first[0].tobytes()
    with pytest.raises(GatewayError) as caught:
        await score(backend, range(20), model_path=paths[0])
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    await backend.close()


async def test_a_peft_adapter_is_imported(backend: LocalBackend, tmp_path: Path) -> None:
    await make_model(backend)
    await train(backend)
    await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    source = tmp_path / "checkpoints" / "s-1%3Atrain%3A0" / "weights" / "a"
    files = {name: source / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    path = "tinker://i-1:train:0/weights/mine"
    saved = await backend.import_checkpoint(Checkpoint(path=path, base_model=BASE), files)
    assert saved.size_bytes > 0
    assert not saved.has_optimizer
    [imported] = [c for c in await backend.checkpoints() if c.path == path]
    assert imported.size_bytes == saved.size_bytes
    original = await score(backend, range(30), model_path=f"tinker://{MODEL}/weights/a")
    again = await score(backend, range(30), model_path=path)
    assert original.tobytes() == again.tobytes()
    with pytest.raises(GatewayError, match="optimizer"):
        await backend.create_model(
            ModelSpec(
                "s-3:train:0",
                BASE,
                LoraConfig(),
                OptimizerConfig(),
                checkpoint=CheckpointSource(path=path, with_optimizer=True),
            )
        )

    config = json.loads(files["adapter_config.json"].read_text())
    odd = tmp_path / "adapter_config.json"
    odd.write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(GatewayError, match="use_dora"):
        await backend.import_checkpoint(
            Checkpoint(path=path + "2", base_model=BASE), {**files, "adapter_config.json": odd}
        )
    assert len(await backend.checkpoints()) == 2
