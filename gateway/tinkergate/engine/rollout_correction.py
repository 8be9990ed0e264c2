"""Leaving sequences out of the importance_sampling loss that trainer and sampler disagree on.

In the notation of `tinkergate_kernels.losses.registry`, for each datum, over its tokens whose
weight and advantage are not 0:

    s = prod r = exp(sum (lp - lq))
    a datum with s > threshold or s < lower_threshold is left out
    loss = -sum over the tokens of the datums that stay of  w R A
    R = r, or where there is a weight_cap min(s, weight_cap) exp(lp - sg(lp)), with s as a constant

This is masked importance sampling on sequences (Seq-MIS; Liu, Li et al. 2025, "When Speed Kills
Stability", part 3), as verl's "rollout correction" has it: its `rollout_rs` "seq_sum_k1" (before:
"sequence") is the bound on s, its `rollout_is` "sequence" with `rollout_is_threshold` the cap. MinT
takes verl's names in `rollout_correction_config`; what its server makes of them is not published,
and is taken to be the same. That s is the product and not the geometric mean follows from those
names, and from the size of the thresholds: verl's documents give 1.0002 to 1.001 for the mean, 2
and more for the product, and MinT's public script has 1.1 and the interval 0.5 to 2.

The sum of a datum needs all of it, and micro-batches hold whole datums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tinkergate_kernels.losses import LossResult, evaluate

LOSS = "importance_sampling"
"""The loss that is corrected; the others bound their ratios themselves."""


@dataclass(frozen=True)
class RolloutCorrection:
    """What stays of the datums of a call."""

    threshold: float = math.inf
    """The most that s may be; at least 1."""
    lower_threshold: float = 0.0
    """The least that s may be; at most 1."""
    weight_cap: float | None = None
    """The most that a datum's tokens may weigh; None keeps each token's own ratio."""


def evaluate_corrected(
    correction: RolloutCorrection,
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    offsets: Tensor,
) -> LossResult:
    """The importance_sampling loss under a correction; arguments as of
    `tinkergate_kernels.losses.evaluate`.

    The metrics of the loss are of the tokens that stay, with their own ratios r. Beside them stand
    `masked_datums:sum` and `masked_tokens:sum`, what was left out, and `sequence_log_ratio:min` and
    `:max`, the extremes of log s of all datums with a token that counts.
    """
    weights = inputs.get("weights", torch.ones_like(logprobs))
    counted = (weights != 0) & (inputs["advantages"] != 0)
    shifts = torch.where(counted, logprobs.double() - inputs["logprobs"].double(), 0.0)
    lengths = offsets.diff()
    sums = torch.segment_reduce(shifts, "sum", offsets=offsets, initial=0.0)
    tokens = torch.segment_reduce(counted.double(), "sum", offsets=offsets, initial=0.0)
    low = math.log(correction.lower_threshold) if correction.lower_threshold > 0 else -math.inf
    stays = (sums <= math.log(correction.threshold)) & (sums >= low)
    kept = {**inputs, "weights": weights * stays.repeat_interleave(lengths)}
    result = evaluate(LOSS, logprobs, kept, offsets)
    metrics = result.metrics | _metrics(sums, tokens, stays)
    if correction.weight_cap is None:
        return result._replace(metrics=metrics)
    caps = sums.clamp(max=math.log(correction.weight_cap)).exp().float()
    # With the model for its own sampler, every r is 1 and has the gradient of lp.
    weighted = {
        **inputs,
        "weights": kept["weights"] * caps.repeat_interleave(lengths),
        "logprobs": logprobs,
    }
    return evaluate(LOSS, logprobs, weighted, offsets)._replace(metrics=metrics)


def _metrics(sums: Tensor, tokens: Tensor, stays: Tensor) -> dict[str, float]:
    there = tokens > 0
    gone = there & ~stays
    metrics = {
        "masked_datums:sum": float(gone.sum()),
        "masked_tokens:sum": float(tokens[gone].sum()),
    }
    if there.any():
        metrics["sequence_log_ratio:min"] = float(sums[there].min())
        metrics["sequence_log_ratio:max"] = float(sums[there].max())
    return metrics
