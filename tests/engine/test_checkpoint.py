"""Checkpoints: what is saved is loaded, by us and by plain PEFT; damage is told by name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tinkergate.engine import checkpoint
from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.attention import PackedPlan
from tinkergate.engine.base import BaseModel
from tinkergate.engine.optimizer import OptimizerState
from tinkergate.errors import ErrorReason, GatewayError, Kind

PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def make_weights(value: float = 1.0) -> dict[str, Tensor]:
    weights = {}
    for index, path in enumerate(PATHS):
        key = f"base_model.model.{path}.lora_"
        weights[f"{key}A.weight"] = torch.arange(6.0).reshape(2, 3) + value + index
        weights[f"{key}B.weight"] = torch.arange(8.0).reshape(4, 2) - value
    return weights


def make_optimizer(step: int = 7) -> OptimizerState:
    weights = make_weights()
    return OptimizerState(
        step, {k: w * 0.5 for k, w in weights.items()}, {k: w**2 for k, w in weights.items()}
    )


def make_config(**changes: Any) -> dict[str, Any]:
    plain = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]).to_dict()
    plain |= {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    return plain | {"target_modules": ["q_proj", "down_proj"]} | changes


def save(folder: Path, **changes: Any) -> int:
    arguments: dict[str, Any] = {
        "adapter_config": make_config(),
        "weights": make_weights(),
        "optimizer": make_optimizer(),
        "metadata": {"model_id": "s:train:0", "note": "Grüße"},
        "overwrite": False,
    }
    return checkpoint.save(folder, **(arguments | changes))


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert torch.equal(found[key], wanted[key])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    size = save(folder)
    loaded = checkpoint.load(folder)
    assert_same(loaded.weights, make_weights())
    assert loaded.optimizer is not None
    assert loaded.optimizer.step == 7
    assert_same(loaded.optimizer.exp_avg, make_optimizer().exp_avg)
    assert_same(loaded.optimizer.exp_avg_sq, make_optimizer().exp_avg_sq)
    assert loaded.adapter_config == make_config()
    assert loaded.metadata == {"model_id": "s:train:0", "note": "Grüße"}
    assert loaded.size_bytes == size == sum(path.stat().st_size for path in folder.iterdir())

    summary = checkpoint.summarize(folder)
    assert summary.adapter_config == make_config()
    assert summary.metadata == loaded.metadata
    assert summary.has_optimizer
    assert (summary.optimizer_steps, summary.size_bytes) == (7, size)
    assert checkpoint.load(folder, with_optimizer=False).optimizer is None


def test_without_optimizer(tmp_path: Path) -> None:
    save(tmp_path / "a", optimizer=None)
    assert checkpoint.load(tmp_path / "a").optimizer is None
    assert not checkpoint.summarize(tmp_path / "a").has_optimizer
    assert not (tmp_path / "a" / checkpoint.OPTIMIZER_FILE).exists()


def test_an_optimizer_that_took_no_step_is_one(tmp_path: Path) -> None:
    save(tmp_path / "a", optimizer=OptimizerState(0, {}, {}))
    optimizer = checkpoint.load(tmp_path / "a").optimizer
    assert optimizer is not None
    assert (optimizer.step, optimizer.exp_avg) == (0, {})


def test_only_overwrite_replaces(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    save(folder)
    with pytest.raises(GatewayError, match="there is a checkpoint 'a' already") as caught:
        save(folder, weights=make_weights(2.0))
    assert caught.value.kind is Kind.CONFLICT
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_EXISTS
    assert_same(checkpoint.load(folder).weights, make_weights())

    save(folder, weights=make_weights(2.0), optimizer=None, overwrite=True)
    loaded = checkpoint.load(folder)
    assert_same(loaded.weights, make_weights(2.0))
    assert loaded.optimizer is None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_removed_is_gone(tmp_path: Path) -> None:
    save(tmp_path / "a")
    checkpoint.remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    checkpoint.remove(tmp_path / "a")
    with pytest.raises(GatewayError, match="there is no checkpoint 'a'") as caught:
        checkpoint.load(tmp_path / "a")
    assert caught.value.kind is Kind.NOT_FOUND


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GatewayError, match="'a' cannot be written: ") as caught:
        save(tmp_path / "file" / "a")
    assert caught.value.kind is Kind.UNAVAILABLE


def test_tensors_may_share_memory_and_be_strided(tmp_path: Path) -> None:
    shared = torch.arange(16.0).reshape(4, 4)
    weights = dict(zip(make_weights(), (shared[:2], shared, shared.T, shared), strict=True))
    save(tmp_path / "a", weights=weights)
    assert_same(checkpoint.load(tmp_path / "a").weights, weights)


def _flip(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return flip


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def _lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _record(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / checkpoint.RECORD_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((_flip(name), rf"{name} of checkpoint 'a' is damaged: its contents") for name in FILES),
        *((_cut(name), rf"{name} of checkpoint 'a' is damaged: it has") for name in FILES),
        *((_lose(name), rf"{name} of checkpoint 'a' is damaged: .*No such") for name in FILES),
        (_cut("tinkergate.json"), r"tinkergate.json of checkpoint 'a' is damaged: the file"),
        (_lose("tinkergate.json"), "there is no checkpoint 'a'"),
        (_record(format=2), r"tinkergate.json of checkpoint 'a' is damaged: format"),
        (_record(files={}), r"tinkergate.json .* does not list "),
    ],
)
def test_damage_is_told_by_name(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    save(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(GatewayError, match=message):
        checkpoint.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task_type": None}, "task_type is None; must be 'CAUSAL_LM'"),
        ({"target_modules": "all-linear"}, "target_modules is the pattern 'all-linear'"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ["q_proj"]}, "down_proj', which target_modules does not name"),
        ({"use_dora": True}, "use_dora is True"),
        ({"r": 0}, "r is 0; must be a positive integer"),
    ],
)
def test_what_plain_peft_would_not_load_is_not_saved(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(GatewayError, match=message):
        save(tmp_path / "a", adapter_config=make_config(**config))
    assert list(tmp_path.iterdir()) == []


def write_peft_folder(folder: Path, weights: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(make_config(**config)))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_a_foreign_folder_is_read_in_float32(tmp_path: Path) -> None:
    halves = {key: weight.bfloat16() for key, weight in make_weights().items()}
    folder = write_peft_folder(tmp_path / "f", halves, target_modules="all-linear", task_type=None)
    config, weights = checkpoint.read_peft_folder(folder)
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert_same(weights, make_weights())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True; only plain LoRA is supported"),
        ({"bias": "all"}, "bias is 'all'; must be 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = write_peft_folder(tmp_path / "f", make_weights(), **config)
    with pytest.raises(GatewayError, match=message) as caught:
        checkpoint.read_peft_folder(folder)
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH


def test_odd_weights_are_refused_by_name(tmp_path: Path) -> None:
    embedding = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 5)}
    folder = write_peft_folder(tmp_path / "embedding", make_weights() | embedding)
    with pytest.raises(GatewayError, match=r"embed_tokens"):
        checkpoint.read_peft_folder(folder)

    infinite = make_weights()
    key = next(iter(infinite))
    infinite[key][0, 0] = torch.inf
    folder = write_peft_folder(tmp_path / "infinite", infinite)
    with pytest.raises(GatewayError, match=r"q_proj\.lora_A\.weight has numbers"):
        checkpoint.read_peft_folder(folder)


def test_pickled_and_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = write_peft_folder(tmp_path / "f", make_weights())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(GatewayError, match=r"adapter_model\.bin is a pickle, which can run code"):
        checkpoint.read_peft_folder(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(GatewayError, match="is missing: this is no adapter"):
        checkpoint.read_peft_folder(folder)


TOKENS = torch.arange(40, 80)


@pytest.mark.parametrize("unembed", [False, True])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_plain_peft_gives_the_same_logprobs(
    tmp_path: Path, micro_model_dir: Path, unembed: bool
) -> None:
    base = BaseModel.load(micro_model_dir)
    adapters = Adapters(base)
    adapters.create("a", LoraSpec(rank=4, alpha=8, seed=3, train_unembed=unembed))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in adapters.parameters("a"):
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
        with adapters.active("a"):
            ours = _logprobs(base)
        bare = _logprobs(base)
    weights: dict[str, Tensor] = dict(adapters.parameters("a"))
    save(tmp_path / "a", adapter_config=adapters.peft_config("a"), weights=weights, optimizer=None)

    plain = AutoModelForCausalLM.from_pretrained(micro_model_dir)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
    assert load_file(tmp_path / "a" / "adapter_model.safetensors").keys() == (
        peft.get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    )
    with torch.no_grad():
        theirs = torch.log_softmax(model(TOKENS[None]).logits[0], dim=-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert float((ours - bare).abs().max()) > 0.1

    loaded = checkpoint.load(tmp_path / "a")
    adapters.add("b", loaded.adapter_config, loaded.weights, trainable=False)
    with adapters.active("b"), torch.no_grad():
        assert torch.equal(_logprobs(base), ours)


def _logprobs(base: BaseModel) -> Tensor:
    positions = torch.arange(len(TOKENS))
    hidden = base.hidden(TOKENS, positions, PackedPlan([len(TOKENS)]))
    return torch.log_softmax(base.logits(hidden), dim=-1)


def test_a_copy_holds_the_same_and_says_something_else(tmp_path: Path) -> None:
    save(tmp_path / "a", metadata={"note": "one", "kept": True})
    made = checkpoint.copy(tmp_path / "a", tmp_path / "far" / "b", {"note": "two"})
    assert made.metadata == {"note": "two", "kept": True}
    assert made.optimizer_steps == 7
    checkpoint.remove(tmp_path / "a")
    loaded = checkpoint.load(tmp_path / "far" / "b")
    assert_same(loaded.weights, make_weights())
    assert loaded.optimizer is not None
    assert_same(loaded.optimizer.exp_avg, make_optimizer().exp_avg)
    assert loaded.size_bytes == made.size_bytes


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_a_copy_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, "no links here")

    save(tmp_path / "a")
    monkeypatch.setattr(os, "link", refuse)
    checkpoint.copy(tmp_path / "a", tmp_path / "b", {})
    weights = "adapter_model.safetensors"
    assert not (tmp_path / "a" / weights).samefile(tmp_path / "b" / weights)
    assert_same(checkpoint.load(tmp_path / "b").weights, make_weights())


def test_a_copy_of_what_is_replaced_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some files would be the old ones, some the new."""
    save(tmp_path / "a")
    link = os.link

    def replace_first(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        save(tmp_path / "a", weights=make_weights(2.0), overwrite=True)
        link(source, target)

    monkeypatch.setattr(os, "link", replace_first)
    with pytest.raises(GatewayError, match="was replaced while it was copied"):
        checkpoint.copy(tmp_path / "a", tmp_path / "b", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_files_are_told_with_their_digests(tmp_path: Path) -> None:
    size = save(tmp_path / "a")
    found = checkpoint.files(tmp_path / "a")
    assert sum(facts.size for facts in found.values()) == size
    for name, facts in found.items():
        data = (tmp_path / "a" / name).read_bytes()
        assert (len(data), hashlib.sha256(data).digest()) == (facts.size, facts.sha256)
    (tmp_path / "a" / "optimizer.safetensors").unlink()
    with pytest.raises(GatewayError, match=r"optimizer\.safetensors"):
        checkpoint.files(tmp_path / "a")
