"""LoRA adapters on one shared base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.attention import PackedPlan
from tinkergate.engine.base import BaseModel
from tinkergate.errors import ErrorReason, GatewayError, Kind

TOKENS = torch.randint(512, (40,), generator=torch.Generator().manual_seed(0))
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


# What plain PEFT warns about in its own code, and what the engine must not warn about.
plain_peft = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing",
    "ignore:.*tie_word_embeddings",
    "ignore:fan_in_fan_out",
)


@pytest.fixture
def base(micro_model_dir: Path) -> BaseModel:
    return BaseModel.load(micro_model_dir)


@pytest.fixture
def adapters(base: BaseModel) -> Adapters:
    return Adapters(base)


@torch.no_grad()
def logits(base: BaseModel, adapters: Adapters, name: str | None) -> Tensor:
    with adapters.active(name):
        return base.logits(base.hidden(TOKENS, torch.arange(40), PackedPlan([40])))


def weights(adapters: Adapters, name: str) -> dict[str, Tensor]:
    return {key: parameter.detach().clone() for key, parameter in adapters.parameters(name)}


def scramble(adapters: Adapters, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adapters.parameters(name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {key: t.contiguous() for key, t in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def test_wrapping_and_a_new_adapter_change_nothing(micro_model_dir: Path) -> None:
    base = BaseModel.load(micro_model_dir)
    with torch.no_grad():
        before = base.logits(base.hidden(TOKENS, torch.arange(40), PackedPlan([40])))
    adapters = Adapters(base)
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    assert torch.equal(logits(base, adapters, None), before)
    assert torch.equal(logits(base, adapters, "a"), before)


def test_initial_weights_follow_from_the_seed_alone(adapters: Adapters) -> None:
    torch.manual_seed(1)
    adapters.create("a", LoraSpec(rank=4, alpha=8, seed=5))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    adapters.create("b", LoraSpec(rank=4, alpha=8, seed=5))
    assert torch.equal(torch.random.get_rng_state(), state)
    adapters.create("c", LoraSpec(rank=4, alpha=8, seed=6))
    a, b, c = (weights(adapters, name) for name in "abc")
    for key, parameter in a.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, b[key])
        if ".lora_B." in key:
            assert not parameter.any()
        else:
            assert not torch.equal(parameter, c[key])
            bound = parameter.shape[1] ** -0.5
            assert 0.8 * bound < parameter.abs().max() <= bound


def test_parts_select_their_projections(adapters: Adapters) -> None:
    for parts, expected in {
        ("train_attn",): ATTENTION,
        ("train_mlp",): MLP,
        ("train_unembed",): {"lm_head"},
        ("train_attn", "train_unembed"): ATTENTION | {"lm_head"},
        ("train_attn", "train_mlp", "train_unembed"): ATTENTION | MLP | {"lm_head"},
    }.items():
        flags = {flag: flag in parts for flag in ("train_attn", "train_mlp", "train_unembed")}
        adapters.create("a", LoraSpec(rank=2, alpha=2, **flags))
        keys = [key for key, _ in adapters.parameters("a")]
        assert {key.split(".")[-3] for key in keys} == expected
        layered = len(expected - {"lm_head"}) * 2 + ("lm_head" in expected)
        assert len(keys) == len(set(keys)) == 2 * layered
        assert set(adapters.peft_config("a")["target_modules"]) == expected
        adapters.delete("a")


def test_a_part_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    adapters = Adapters(BaseModel.load(tmp_path))
    with pytest.raises(GatewayError, match="train_mlp on MixtralForCausalLM") as caught:
        adapters.create("a", LoraSpec(rank=2, alpha=2))
    assert caught.value.kind is Kind.UNSUPPORTED
    assert "a" not in adapters
    adapters.create("a", LoraSpec(rank=2, alpha=2, train_mlp=False))


def test_adapters_do_not_mix(base: BaseModel, adapters: Adapters) -> None:
    bare = logits(base, adapters, None)
    for seed, name in enumerate("ab"):
        adapters.create(name, LoraSpec(rank=4, alpha=8))
        scramble(adapters, name, seed)
    a, b = logits(base, adapters, "a"), logits(base, adapters, "b")
    assert not torch.allclose(a, b)
    scramble(adapters, "b", 7)
    assert torch.equal(logits(base, adapters, "a"), a)
    assert torch.equal(logits(base, adapters, None), bare)
    adapters.delete("b")
    assert "b" not in adapters
    assert torch.equal(logits(base, adapters, "a"), a)


def test_a_snapshot_stays_as_it_is(base: BaseModel, adapters: Adapters) -> None:
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    scramble(adapters, "a", 1)
    adapters.snapshot("a", "frozen")
    before, frozen = logits(base, adapters, "a"), weights(adapters, "frozen")
    scramble(adapters, "a", 2)
    assert torch.equal(logits(base, adapters, "frozen"), before)
    assert not torch.equal(logits(base, adapters, "a"), before)
    adapters.delete("a")
    assert torch.equal(logits(base, adapters, "frozen"), before)
    assert all(torch.equal(p, frozen[key]) for key, p in adapters.parameters("frozen"))


def test_what_trains_is_unmoved_by_other_adapters(adapters: Adapters) -> None:
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    with adapters.active("a"):
        adapters.create("b", LoraSpec(rank=4, alpha=8))
        adapters.snapshot("b", "frozen")
        adapters.delete("b")
    assert all(parameter.requires_grad for _, parameter in adapters.parameters("a"))
    assert not any(parameter.requires_grad for _, parameter in adapters.parameters("frozen"))


def test_an_adapter_that_could_not_be_made_leaves_nothing(
    base: BaseModel, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = base.hf.model.layers[1].mlp.up_proj

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(layer, "update_layer", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            adapters.create("a", LoraSpec(rank=4, alpha=8))
    assert "a" not in adapters
    assert not any("lora" in name for name, _ in base.hf.named_parameters())
    adapters.create("a", LoraSpec(rank=4, alpha=8))


def test_an_active_adapter_cannot_be_deleted(adapters: Adapters) -> None:
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    with adapters.active("a"), pytest.raises(ValueError, match="is active"):
        adapters.delete("a")
    assert "a" in adapters


def test_names_are_taken_once(adapters: Adapters) -> None:
    adapters.create("run.1", LoraSpec(rank=4, alpha=8))
    with pytest.raises(ValueError, match="already"):
        adapters.create("run.1", LoraSpec(rank=4, alpha=8))
    adapters.delete("run.1")
    adapters.delete("run.1")
    adapters.create("run.1", LoraSpec(rank=2, alpha=8))
    assert adapters.spec("run.1").rank == 2
    with pytest.raises(ValueError, match="no adapter"), adapters.active("run.2"):
        pass


@plain_peft
@pytest.mark.parametrize("parts", [{}, {"train_mlp": False}, {"train_unembed": False}], ids=str)
def test_plain_peft_gives_the_same_numbers(
    base: BaseModel,
    adapters: Adapters,
    micro_model_dir: Path,
    tmp_path: Path,
    parts: dict[str, bool],
) -> None:
    adapters.create("a", LoraSpec(rank=4, alpha=6.5, **parts))
    scramble(adapters, "a", 1)
    write(tmp_path, adapters.peft_config("a"), weights(adapters, "a"))
    plain = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float32)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(plain, tmp_path)(TOKENS[None]).logits[0]
    assert (logits(base, adapters, "a") - expected).abs().max() < 1e-4
    # And back.
    adapters.load("b", tmp_path, trainable=False)
    assert torch.equal(logits(base, adapters, "b"), logits(base, adapters, "a"))
    assert adapters.spec("b") == adapters.spec("a")


@plain_peft
@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_adapters_that_peft_has_saved(
    base: BaseModel,
    adapters: Adapters,
    micro_model_dir: Path,
    tmp_path: Path,
    rank_stabilised: bool,
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
        use_rslora=rank_stabilised,
    )
    model = get_peft_model(plain, config)
    model.save_pretrained(tmp_path)
    adapters.load("a", tmp_path, trainable=True)
    with torch.no_grad():
        expected = model(TOKENS[None]).logits[0]
    assert (logits(base, adapters, "a") - expected).abs().max() < 1e-4
    spec = adapters.spec("a")
    assert (spec.rank, spec.train_attn, spec.train_mlp, spec.train_unembed) == (
        4,
        True,
        False,
        False,
    )
    assert adapters.peft_config("a")["target_modules"] == ["q_proj", "v_proj"]


def test_modules_that_share_a_name_with_others_are_written_in_full(adapters: Adapters) -> None:
    adapters.create("a", LoraSpec(rank=2, alpha=2, train_mlp=False, train_unembed=False))
    config, tensors = adapters.peft_config("a"), weights(adapters, "a")
    first = {key: tensor for key, tensor in tensors.items() if ".layers.0." in key}
    adapters.add("b", config, first, trainable=False)
    assert adapters.peft_config("b")["target_modules"] == [
        f"model.layers.0.self_attn.{name}" for name in sorted(ATTENTION)
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": 3}, "must be [3, 64]"),
        ({"r": None}, "r is None"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused(
    adapters: Adapters, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    write(tmp_path, adapters.peft_config("a") | change, weights(adapters, "a"))
    with pytest.raises(GatewayError) as caught:
        adapters.load("b", tmp_path, trainable=True)
    assert told in caught.value.message
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH
    assert "b" not in adapters


def test_weights_that_do_not_fit_are_refused(adapters: Adapters) -> None:
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    config, good = adapters.peft_config("a"), weights(adapters, "a")
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    for changed in (
        {k: v for k, v in good.items() if k != key},
        good | {key: good[key][:, :-1]},
        good | {key: good[key] * torch.nan},
        good | {k.replace("layers.1", "layers.2"): v for k, v in good.items()},
        good | {"base_model.model.lm_head.weight": torch.zeros(2, 2)},
    ):
        with pytest.raises(GatewayError) as caught:
            adapters.add("b", config, changed, trainable=True)
        assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH
        assert "b" not in adapters


def test_a_folder_that_holds_no_adapter(adapters: Adapters, tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match=r"adapter_config\.json is missing"):
        adapters.load("a", tmp_path, trainable=False)


@plain_peft
def test_fused_projections(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = BaseModel.load(tmp_path / "base")
    adapters = Adapters(base)
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    scramble(adapters, "a", 1)
    keys = {key.split(".", 4)[-1].rpartition(".lora_")[0] for key, _ in adapters.parameters("a")}
    assert {"0.attn.c_attn", "0.attn.c_proj", "1.mlp.c_fc", "1.mlp.c_proj"} <= keys
    write(tmp_path / "a", adapters.peft_config("a"), weights(adapters, "a"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(plain, tmp_path / "a")(TOKENS[None]).logits[0]
    assert (logits(base, adapters, "a") - expected).abs().max() < 1e-4


def test_bfloat16_base_keeps_float32_factors(micro_model_dir: Path) -> None:
    base = BaseModel.load(micro_model_dir, dtype=torch.bfloat16)
    adapters = Adapters(base)
    adapters.create("a", LoraSpec(rank=4, alpha=8))
    assert {p.dtype for _, p in adapters.parameters("a")} == {torch.float32}
    scramble(adapters, "a", 1)
    assert logits(base, adapters, "a").isfinite().all()
