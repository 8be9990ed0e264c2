"""Which base models the local backend serves, and what stops it from opening."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tinkergate.backends.local.opening import open_backend, served_models
from tinkergate.engine.model_files import ModelFiles
from tinkergate.errors import GatewayError


@pytest.fixture
def files(tmp_path: Path, micro_model_dir: Path) -> ModelFiles:
    """A cache of its own in which the micro model has a name and an alias."""
    files = ModelFiles(tmp_path / "cache")
    files.add("labs/micro", str(micro_model_dir), aliases=["tiny"])
    return files


def test_names_aliases_and_folders_lead_to_the_same_files(files, micro_model_dir):
    for wanted in ("labs/micro", "tiny"):
        (model,) = served_models(files, [wanted])
        assert model.name == "labs/micro"
        assert model.aliases == ("tiny",)
        assert model.folder == micro_model_dir.resolve()
    (model,) = served_models(files, [str(micro_model_dir)])
    assert model.name == str(micro_model_dir.resolve())
    assert model.aliases == ("micro",)
    assert model.folder == micro_model_dir.resolve()


def test_a_model_that_is_named_twice_is_served_once(files):
    assert len(served_models(files, ["tiny", "labs/micro", "tiny"])) == 1


def test_an_alias_belongs_to_the_first_that_has_it(files, micro_model_dir, tmp_path):
    other = tmp_path / "micro"
    shutil.copytree(micro_model_dir, other)
    first, second = served_models(files, [str(micro_model_dir), str(other)])
    assert first.aliases == ("micro",)
    assert second.aliases == ()


def test_a_model_that_is_asked_for_must_be_there(files):
    with pytest.raises(GatewayError, match="no base model 'nothing'"):
        served_models(files, ["tiny", "nothing"])


@pytest.mark.slow
def test_without_names_the_default_model_comes_first_and_the_added_ones_after(
    default_model_dir, micro_model_dir, tmp_path, caplog
):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(default_model_dir.parent)
    files = ModelFiles(cache)
    gone = tmp_path / "gone"
    shutil.copytree(micro_model_dir, gone)
    files.add("labs/gone", str(gone))
    files.add("labs/micro", str(micro_model_dir))
    shutil.rmtree(gone)
    served = served_models(files, [])
    assert [model.name for model in served] == [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "labs/micro",
    ]
    assert "labs/gone is not served" in caplog.text


async def test_an_open_backend_has_its_first_model_in_memory(micro_model_dir, tmp_path):
    backend = await open_backend([str(micro_model_dir)], tmp_path, dtype="bfloat16")
    try:
        await backend.start()
        (model,) = await backend.models()
        assert model.name == str(micro_model_dir.resolve())
        assert model.backend == backend.name
    finally:
        await backend.close()


async def test_a_device_that_is_not_there_is_named(micro_model_dir, tmp_path):
    for device in ("cuda:99", "no such device"):
        with pytest.raises(GatewayError) as caught:
            await open_backend([str(micro_model_dir)], tmp_path, device=device)
        assert f"the device {device!r} cannot be used" in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_kernels_that_there_are_not_are_named(micro_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TINKERGATE_KERNELS", "fast")
    with pytest.raises(GatewayError, match="TINKERGATE_KERNELS is 'fast'; must be fused or plain"):
        await open_backend([str(micro_model_dir)], tmp_path)


async def test_plain_kernels_are_told_in_the_log(micro_model_dir, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TINKERGATE_KERNELS", "plain")
    backend = await open_backend([str(micro_model_dir)], tmp_path)
    await backend.close()
    assert "logprobs and losses in plain PyTorch, as TINKERGATE_KERNELS says" in caplog.text


async def test_weights_that_do_not_load_are_told_before_anything_serves(micro_model_dir, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(micro_model_dir, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(GatewayError, match="broken"):
        await open_backend([str(broken)], tmp_path)
