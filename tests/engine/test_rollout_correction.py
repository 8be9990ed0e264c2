"""The correction of rollouts against its formula in float64 and autograd, and in training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel
from tinkergate.engine.losses import Example
from tinkergate.engine.rollout_correction import RolloutCorrection, evaluate_corrected
from tinkergate.engine.trainer import ForwardBackwardResult, Trainer

OFFSETS = torch.tensor([0, 4, 4, 9, 12, 20])


def case() -> tuple[Tensor, dict[str, Tensor]]:
    """Five datums, the second empty, whose log ratios lie around 0."""
    numbers = torch.Generator().manual_seed(11)
    logprobs = -torch.rand(20, generator=numbers) * 3
    noise = torch.randn(20, generator=numbers) * 0.3
    advantages = torch.randn(20, generator=numbers)
    advantages[::4] = 0
    weights = torch.rand(20, generator=numbers) + 0.5
    weights[1::7] = 0
    return logprobs, {
        "logprobs": logprobs + noise,
        "advantages": advantages,
        "weights": weights,
    }


def formula(
    correction: RolloutCorrection, lp: Tensor, inputs: dict[str, Tensor]
) -> tuple[Tensor, list[float]]:
    """The loss with its graph, and log s of each datum."""
    total, logs = lp.sum() * 0, []
    for start, end in zip(OFFSETS.tolist(), OFFSETS.tolist()[1:], strict=False):
        own = {key: each[start:end].double() for key, each in inputs.items()}
        w = own.get("weights", torch.ones(end - start, dtype=torch.float64))
        here = (w != 0) & (own["advantages"] != 0)
        p = lp[start:end][here]
        r = (p - own["logprobs"][here]).exp()
        s = r.detach().prod().item()
        logs.append(math.log(s))
        if correction.lower_threshold <= s <= correction.threshold:
            if correction.weight_cap is not None:
                r = min(s, correction.weight_cap) * (p - p.detach()).exp()
            total = total - (w[here] * r * own["advantages"][here]).sum()
    return total, logs


CORRECTIONS = [
    RolloutCorrection(),
    RolloutCorrection(threshold=1.1),
    RolloutCorrection(threshold=1.5, lower_threshold=0.6),
    RolloutCorrection(threshold=2.0, lower_threshold=0.5, weight_cap=1.1),
    RolloutCorrection(weight_cap=0.7),
]


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradient_are_those_of_the_formula(
    correction: RolloutCorrection, weighted: bool
) -> None:
    logprobs, inputs = case()
    if not weighted:
        del inputs["weights"]
    leaf = logprobs.double().requires_grad_()
    loss, logs = formula(correction, leaf, inputs)
    [wanted] = torch.autograd.grad(loss, leaf)
    found = evaluate_corrected(correction, logprobs, inputs, OFFSETS)
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    assert torch.allclose(found.gradient.double(), wanted, rtol=1e-5, atol=1e-6)

    real = [log for index, log in enumerate(logs) if index != 1]
    assert found.metrics["sequence_log_ratio:min"] == pytest.approx(min(real), rel=1e-5)
    assert found.metrics["sequence_log_ratio:max"] == pytest.approx(max(real), rel=1e-5)
    gone = [not correction.lower_threshold <= math.exp(x) <= correction.threshold for x in logs]
    assert found.metrics["masked_datums:sum"] == sum(gone)
    assert found.metrics["masked_tokens:sum"] + found.metrics["active_tokens:sum"] == (
        ((inputs.get("weights", torch.ones(20)) != 0) & (inputs["advantages"] != 0)).sum().item()
    )


def test_the_cases_leave_out_some_and_keep_some() -> None:
    logprobs, inputs = case()
    counts = [
        evaluate_corrected(correction, logprobs, inputs, OFFSETS).metrics["masked_datums:sum"]
        for correction in CORRECTIONS
    ]
    assert counts[0] == counts[4] == 0
    assert all(0 < count < 4 for count in counts[1:4])


def test_a_datum_that_is_left_out_gives_exactly_nothing() -> None:
    logprobs, inputs = case()
    inputs["logprobs"][:4] = logprobs[:4] - 100.0  # r alone would overflow
    found = evaluate_corrected(RolloutCorrection(threshold=2.0), logprobs, inputs, OFFSETS)
    assert not found.gradient[:4].any()
    assert found.per_datum[0] == 0
    assert math.isfinite(found.loss.item())


def test_no_datum_at_all() -> None:
    empty = torch.zeros(0)
    inputs = {"logprobs": empty, "advantages": empty}
    found = evaluate_corrected(RolloutCorrection(1.1), empty, inputs, torch.tensor([0]))
    assert found.loss.item() == 0
    assert found.metrics["masked_datums:sum"] == 0
    assert "sequence_log_ratio:max" not in found.metrics


def run(
    trainer: Trainer, data: list[Example], loss: str, *, per_token: bool = False
) -> ForwardBackwardResult:
    work = trainer.forward_backward(data, loss, {}, backward=True, per_token=per_token)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: ForwardBackwardResult = stop.value
            return result


def test_a_model_learns_from_what_stays_alone(micro_model_dir: Path) -> None:
    base = BaseModel.load(micro_model_dir)
    adapters = Adapters(base)
    adapters.create("a", LoraSpec(rank=2, alpha=2))

    def made(correction: RolloutCorrection | None) -> Trainer:
        return Trainer(base, adapters, "a", tokens_per_micro_batch=12, correction=correction)

    numbers = np.random.default_rng(1)
    texts = [numbers.integers(512, size=size) for size in (5, 9, 7)]
    targets = [{"target_tokens": numbers.integers(512, size=len(tokens))} for tokens in texts]
    plain = [Example(tokens, inputs) for tokens, inputs in zip(texts, targets, strict=True)]
    own = run(made(None), plain, "cross_entropy").logprobs

    def rollouts(off: float) -> list[Example]:
        return [
            Example(
                one.tokens,
                {
                    **one.inputs,
                    "logprobs": logprobs - (off / len(logprobs) if index == 1 else 0.0),
                    "advantages": np.full(len(logprobs), 0.5 + index, np.float32),
                },
            )
            for index, (one, logprobs) in enumerate(zip(plain, own, strict=True))
        ]

    corrected, alone = made(RolloutCorrection(threshold=1.1)), made(None)
    result = run(corrected, rollouts(off=0.2), "importance_sampling")
    assert result.metrics["masked_datums:sum"] == 1
    assert result.metrics["masked_tokens:sum"] == 9
    assert result.metrics["sequence_log_ratio:max"] == pytest.approx(0.2, abs=1e-4)
    assert [len(logprobs) for logprobs in result.logprobs] == [5, 9, 7]
    run(alone, [rollouts(0.2)[0], rollouts(0.2)[2]], "importance_sampling")
    _same_gradients(corrected, alone)
    divided = made(RolloutCorrection(threshold=1.1))
    run(divided, rollouts(off=0.2), "importance_sampling", per_token=True)
    assert divided._gradients.take().tokens == 5 + 7

    near, plain_near = made(RolloutCorrection(threshold=1.1)), made(None)
    assert run(near, rollouts(0.05), "importance_sampling").metrics["masked_datums:sum"] == 0
    run(plain_near, rollouts(0.05), "importance_sampling")
    _same_gradients(near, plain_near)
    # The other losses are as they are.
    assert "masked_datums:sum" not in run(near, rollouts(0.2), "ppo").metrics


def _same_gradients(one: Trainer, other: Trainer) -> None:
    parts: Any = zip(one._gradients.parts or [], other._gradients.parts or [], strict=True)
    for part, right in parts:
        assert torch.allclose(part, right, rtol=1e-4, atol=1e-6)
    assert any(part.abs().max() > 1e-3 for part in one._gradients.parts or [])
