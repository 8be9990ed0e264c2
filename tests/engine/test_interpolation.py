"""Weighted sums of adapters: their changes in float64, and the folder that PEFT and we load."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tinkergate.engine import checkpoint
from tinkergate.engine.adapters import LoraSpec
from tinkergate.engine.engine import Engine
from tinkergate.engine.interpolation import interpolated
from tinkergate.engine.peft_format import adapted_paths, weight_key
from tinkergate.engine.scorer import ScoringRequest
from tinkergate.engine.snapshots import Snapshot
from tinkergate.errors import GatewayError

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
OUT, IN = 6, 5


def adapter(rank: int, alpha: float, paths: tuple[str, ...], seed: int, **config: Any) -> Any:
    numbers = torch.Generator().manual_seed(seed)
    weights = {}
    for path in paths:
        weights[weight_key(path, "A")] = torch.randn(rank, IN, generator=numbers)
        weights[weight_key(path, "B")] = torch.randn(OUT, rank, generator=numbers)
    return {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, **config}, weights


def deltas(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter changes, in float64, by its definition."""
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return {
        path: scale
        * weights[weight_key(path, "B")].double()
        @ weights[weight_key(path, "A")].double()
        for path in adapted_paths(weights)
    }


def test_the_change_is_the_weighted_sum_of_the_changes() -> None:
    sources = [
        adapter(3, 8.0, (Q, DOWN), 0),
        adapter(1, 0.5, (Q,), 1),
        adapter(4, 2.0, (DOWN,), 2, use_rslora=True),
    ]
    coefficients = [0.5, -2.0, 0.3]
    config, weights = interpolated(sources, coefficients)
    assert config["r"] == 8
    found = deltas(config, weights)
    for path in (Q, DOWN):
        wanted = torch.zeros(OUT, IN, dtype=torch.float64)
        for source, coefficient in zip(sources, coefficients, strict=True):
            wanted += coefficient * deltas(*source).get(path, torch.zeros(OUT, IN))
        assert torch.allclose(found[path], wanted, rtol=1e-6, atol=1e-6)
        assert wanted.abs().max() > 0.1


@pytest.mark.parametrize(
    ("count", "coefficients", "told"),
    [
        (0, [], "source_paths: is empty"),
        (2, [1.0], "coefficients: has 1 entries; must have one for each of the 2 sources"),
        (1, [float("nan")], r"coefficients\[0\]: is nan; must be finite"),
        (2, [1.0, float("-inf")], r"coefficients\[1\]: is -inf; must be finite"),
    ],
)
def test_bad_coefficients_are_refused(count: int, coefficients: list[float], told: str) -> None:
    with pytest.raises(GatewayError, match=told):
        interpolated([adapter(1, 1.0, (Q,), 0)] * count, coefficients)


def test_what_is_no_plain_lora_is_refused() -> None:
    odd = adapter(1, 1.0, (Q,), 0, use_dora=True)
    with pytest.raises(GatewayError, match="use_dora"):
        interpolated([odd], [1.0])


@pytest.fixture(scope="module")
def engine(micro_model_dir: Path) -> Iterator[Engine]:
    engine = Engine({"micro": micro_model_dir})
    yield engine
    engine.close()


SPECS = [
    LoraSpec(rank=4, alpha=8, seed=1),
    LoraSpec(rank=2, alpha=3, seed=2, train_unembed=False),
]


def saved(engine: Engine, folder: Path) -> list[Path]:
    """Checkpoints of adapters whose weights are all away from 0."""
    loaded = engine.bases.load("micro").result()
    paths = []
    for number, spec in enumerate(SPECS):
        name = loaded.new_name()
        loaded.adapters.create(name, spec)
        numbers = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for _, weight in loaded.adapters.parameters(name):
                weight += 0.1 * torch.randn(weight.shape, generator=numbers)
        path = folder / str(number)
        engine.write_snapshot(Snapshot(loaded, name), path).future.result()
        paths.append(path)
    return paths


def test_a_checkpoint_that_peft_and_the_engine_read(
    engine: Engine, micro_model_dir: Path, tmp_path: Path
) -> None:
    sources = saved(engine, tmp_path)
    loaded = engine.bases.load("micro").result()
    target = tmp_path / "sum"
    size = engine.interpolate(loaded, sources, [0.75, -0.5], target, {"note": 1}).future.result()
    summary = checkpoint.summarize(target)
    assert summary.size_bytes == size
    assert summary.adapter_config["r"] == 6
    assert not summary.has_optimizer
    assert summary.metadata["note"] == 1
    assert summary.metadata["lora"]["train_unembed"] is True

    # Against the plain model with the weights changed by hand, in float64.
    model = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float64)
    head = torch.nn.Linear(64, 512, bias=False, dtype=torch.float64)
    head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head = head  # it is tied to the embeddings, which are not adapted
    with torch.no_grad():
        for source, coefficient in zip(sources, (0.75, -0.5), strict=True):
            read = checkpoint.load(source)
            for path, delta in deltas(read.adapter_config, read.weights).items():
                model.get_submodule(path).weight += coefficient * delta
        tokens = torch.arange(3, 40)
        wanted = model(tokens[None]).logits[0].log_softmax(-1)
    wanted_logprobs = wanted[:-1].gather(1, tokens[1:, None])[:, 0].numpy()

    snapshot = engine.open_snapshot(loaded, target).future.result()
    request = ScoringRequest(tokens.numpy(), np.array([len(tokens)]))
    scored = snapshot.score(request).future.result().logprobs[1:]
    assert np.abs(scored - wanted_logprobs).max() < 1e-3
    bare = Snapshot(loaded, None).score(request).future.result().logprobs[1:]
    assert np.abs(bare - wanted_logprobs).max() > 0.1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float32)
        plain = peft.PeftModel.from_pretrained(plain, target)
    with torch.no_grad():
        theirs = plain(tokens[None]).logits[0].log_softmax(-1)
    assert (theirs - wanted.float()).abs().max() < 1e-3


def test_a_checkpoint_that_is_not_there_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    loaded = engine.bases.load("micro").result()
    sources = [saved(engine, tmp_path)[0], tmp_path / "absent"]
    handle = engine.interpolate(loaded, sources, [1.0, 1.0], tmp_path / "sum", {})
    with pytest.raises(GatewayError, match="absent"):
        handle.future.result()
    assert not (tmp_path / "sum").exists()
