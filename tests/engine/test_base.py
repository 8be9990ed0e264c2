"""The engine's forward pass against that of plain transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from tinkergate.engine.attention import PackedPlan
from tinkergate.engine.base import BaseModel
from tinkergate.errors import GatewayError, Kind

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Привет, мир! 你好世界 1234567890 -- naïve façade 🙂",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nParis.",
    "a",
    "lorem ipsum dolor sit amet " * 12,
]

TINY = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def positions(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


@torch.no_grad()
def largest_errors(base: BaseModel, model: torch.nn.Module, parts: list[Tensor]) -> list[float]:
    """The largest errors of hidden states, logits and logprobs when `parts` go in one row."""
    lengths = [len(part) for part in parts]
    hidden = base.hidden(torch.cat(parts), positions(lengths), PackedPlan(lengths))
    logits = base.logits(hidden)
    plain = [model(part[None], output_hidden_states=True) for part in parts]
    plain_hidden = torch.cat([out.hidden_states[-1][0] for out in plain])
    plain_logits = torch.cat([out.logits[0] for out in plain])
    pairs = [
        (hidden, plain_hidden),
        (logits, plain_logits),
        (logits.log_softmax(1), plain_logits.log_softmax(1)),
    ]
    return [(ours - theirs).abs().max().item() for ours, theirs in pairs]


@pytest.fixture(scope="module")
def base(micro_model_dir: Path) -> BaseModel:
    return BaseModel.load(micro_model_dir)


def test_facts(base: BaseModel, micro_model_dir: Path) -> None:
    assert base.name == micro_model_dir.name
    assert base.arch == "LlamaForCausalLM"
    assert (base.vocab_size, base.max_context) == (512, 512)
    assert (base.num_layers, base.hidden_size) == (2, 64)
    assert base.dtype == torch.float32
    assert base.eos_token_ids == {base.tokenizer.eos_token_id}
    assert not any(parameter.requires_grad for parameter in base.hf.parameters())
    assert not base.hf.training


def test_packed_texts_equal_plain_transformers(base: BaseModel, micro_model_dir: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float32)
    parts = [torch.tensor(base.tokenizer(text).input_ids) for text in TEXTS]
    assert max(largest_errors(base, plain, parts)) < 1e-4


@pytest.mark.slow
def test_default_model_equals_plain_transformers(default_model_dir: Path) -> None:
    base = BaseModel.load(default_model_dir)
    plain = AutoModelForCausalLM.from_pretrained(default_model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(default_model_dir)
    parts = [torch.tensor(tokenizer(text).input_ids) for text in TEXTS]
    # The largest of ten million logits; two of transformers' own attention functions differ by
    # as much, because float32 rounds sums of numbers around 40.
    assert max(largest_errors(base, plain, parts)) < 3e-4
    assert largest_error_of_tokens(base, plain, parts) < 1e-4


@torch.no_grad()
def largest_error_of_tokens(base: BaseModel, model: torch.nn.Module, parts: list[Tensor]) -> float:
    """The largest error of the logprobs of the parts' own tokens."""
    lengths = [len(part) for part in parts]
    hidden = base.hidden(torch.cat(parts), positions(lengths), PackedPlan(lengths))
    logprobs = base.logits(hidden).log_softmax(1).split(lengths)
    errors = [0.0]
    for part, ours in zip(parts, logprobs, strict=True):
        theirs = model(part[None]).logits[0].log_softmax(1)
        difference = (ours - theirs)[:-1].gather(1, part[1:, None]).abs()
        errors += difference.flatten().tolist()
    return max(errors)


def test_a_neighbour_changes_nothing(base: BaseModel) -> None:
    lengths, own = [9, 20, 4], slice(9, 29)
    one, other = (
        torch.randint(512, (33,), generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    other[own] = one[own]
    with torch.no_grad():
        first = base.hidden(one, positions(lengths), PackedPlan(lengths))
        second = base.hidden(other, positions(lengths), PackedPlan(lengths))
    assert torch.equal(first[own], second[own])
    assert not torch.equal(first[:9], second[:9])


def saved(config: PreTrainedConfig, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = [1, 2]
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LlamaConfig(**TINY, attention_bias=True, mlp_bias=True), id="biases"),
        pytest.param(Qwen2Config(**TINY), id="qwen2"),
        pytest.param(Qwen3Config(**TINY, head_dim=16), id="qwen3"),
        pytest.param(MistralConfig(**TINY, sliding_window=6), id="window"),
        pytest.param(
            Gemma2Config(
                **TINY,
                head_dim=8,
                query_pre_attn_scalar=4,
                sliding_window=6,
                attn_logit_softcapping=2.0,
                final_logit_softcapping=None,
            ),
            id="window-and-softcap",
        ),
        pytest.param(GraniteConfig(**TINY, logits_scaling=4.0), id="logits-divided"),
        pytest.param(CohereConfig(**TINY, logit_scale=0.25), id="logits-multiplied"),
        pytest.param(
            GPT2Config(
                vocab_size=128,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                eos_token_id=1,
                bos_token_id=1,
                initializer_range=0.3,
            ),
            id="learned-positions",
        ),
        pytest.param(
            GPTNeoXConfig(**{k: v for k, v in TINY.items() if k != "num_key_value_heads"}),
            id="parallel-blocks",
        ),
    ],
)
def test_other_architectures(config: PreTrainedConfig, tmp_path: Path) -> None:
    base = BaseModel.load(saved(config, tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    parts = [
        torch.randint(128, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 30, 11)
    ]
    hidden, logits, logprobs = largest_errors(base, plain, parts)
    scaled = base.arch in ("GraniteForCausalLM", "CohereForCausalLM")
    assert max(logits, logprobs, 0.0 if scaled else hidden) < 1e-4
    assert base.eos_token_ids == {1, 2}


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        (Gemma2Config(**TINY, head_dim=8), "softcap on the logits"),
        (
            LlamaConfig(
                **TINY, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
            ),
            "rotary embeddings of type 'dynamic'",
        ),
        (
            MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4),
            "layers of type linear_attention",
        ),
        (
            BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4),
            "the attention code of BloomForCausalLM",
        ),
    ],
    ids=["softcap", "rope", "state-space", "own-attention"],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    config: PreTrainedConfig, feature: str, tmp_path: Path
) -> None:
    with pytest.raises(GatewayError) as caught:
        BaseModel.load(saved(config, tmp_path))
    assert caught.value.kind is Kind.UNSUPPORTED
    assert feature in caught.value.message


def test_a_folder_without_a_causal_model(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="does not hold a causal language model"):
        BaseModel.load(tmp_path)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(GatewayError):
        BaseModel.load(tmp_path)


def test_missing_and_damaged_weights_are_not_made_up(micro_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(micro_model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        GatewayError, match=r"lacks the weights 'model.layers.1.mlp.up_proj.weight'"
    ):
        BaseModel.load(folder)
    (folder / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(GatewayError, match="does not hold a causal language model"):
        BaseModel.load(folder)


def test_numbers_that_differ_from_the_models_own_are_refused(
    micro_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkergate.engine.base._logit_scale", lambda config: 1.1)
    with pytest.raises(GatewayError, match="do not give the logits of its own forward"):
        BaseModel.load(micro_model_dir)


def test_bfloat16(micro_model_dir: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinkergate.engine.base._VOCABULARY_PIECE", 100)
    rounded = BaseModel.load(micro_model_dir, dtype=torch.bfloat16)
    tokens = torch.arange(40)
    with torch.no_grad():
        exact = base.logits(base.hidden(tokens, tokens, PackedPlan([40])))
        logits = rounded.logits(rounded.hidden(tokens, tokens, PackedPlan([40])))
    assert logits.dtype == torch.float32
    assert logits.shape == (40, 512)
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
