"""The losses in plain PyTorch, in float64: gradients by formula, no autograd. What a CPU takes in
any case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tinkergate_kernels.losses.pairs import preference
from tinkergate_kernels.losses.problem import LossResult, Problem, Statistics
from tinkergate_kernels.losses.registry import HIGH, LOW

BLOCK = 16384
"""Tokens taken at once: their float64 arrays stay in a cache, and PyTorch takes a sum of so few on
one thread, so its bits do not depend on the number of threads."""


class _Tokens(NamedTuple):
    """The tokens of a call, float64 [M] each, 0 where masked."""

    active: Tensor
    """Bool: not masked."""
    lp: Tensor
    a: Tensor
    """Advantages."""
    shift: Tensor
    """lp - lq."""
    ratio: Tensor
    """exp of the shift, or one of the whole datum."""


class _Terms(NamedTuple):
    """What each token adds, float64 [M]."""

    loss: Tensor
    gradient: Tensor
    clipped: Tensor | None = None
    """Bool: a clamp or mask took the token's gradient or bounded it."""
    kl_ref: Tensor | None = None


def solve(problem: Problem) -> LossResult:
    """The loss of a problem, on its own device."""
    match problem.spec.name:
        case "cross_entropy":
            return _cross_entropy(problem)
        case "dpo":
            return _dpo(problem)
        case _:
            return _policy(problem)


def _masked(tensor: Tensor, active: Tensor) -> Tensor:
    """In float64, 0 where not active: a product with 0 would let infinities through."""
    return torch.where(active, tensor.double(), 0.0)


def _per_datum(terms: Tensor, offsets: Tensor) -> Tensor:
    return torch.segment_reduce(terms, "sum", offsets=offsets, initial=0.0)


def _cross_entropy(problem: Problem) -> LossResult:
    weights = problem.inputs.get("weights")
    if weights is None:
        weights = torch.ones_like(problem.logprobs)
    terms = -weights.double() * _masked(problem.logprobs, weights != 0)
    per_datum = _per_datum(terms, problem.offsets)
    return LossResult(per_datum.sum(), per_datum, -weights, {})


def _dpo(problem: Problem) -> LossResult:
    weights = problem.inputs["weights"]
    active = weights != 0
    gain = _masked(problem.logprobs, active) - _masked(problem.inputs["ref_logprobs"], active)
    margins = _per_datum(weights.double() * gain, problem.offsets)
    pairs = preference(margins, problem.settings)
    slopes = pairs.slope.repeat_interleave(problem.offsets.diff())
    gradient = torch.where(active, slopes * weights, 0.0).float()
    return LossResult(pairs.per_datum.sum(), pairs.per_datum, gradient, pairs.metrics)


def _policy(problem: Problem) -> LossResult:
    count = problem.logprobs.numel()
    loss = problem.logprobs.new_empty(count, dtype=torch.float64)
    gradient = problem.logprobs.new_empty(count)
    sequence_ratios = _sequence_ratios(problem) if problem.spec.name == "gspo" else None
    statistics = []
    for start in range(0, count, BLOCK):
        part = slice(start, start + BLOCK)
        block = replace(
            problem,
            logprobs=problem.logprobs[part],
            inputs={name: each[part] for name, each in problem.inputs.items()},
        )
        tokens = _tokens(block, None if sequence_ratios is None else sequence_ratios[part])
        terms = _TERMS[problem.spec.name](block, tokens)
        loss[part] = terms.loss
        # The gradient of a masked token is 0 and not -0.
        gradient[part] = torch.where(tokens.active, terms.gradient, 0.0)
        statistics.append(_statistics(tokens, terms))
    per_datum = _per_datum(loss, problem.offsets)
    metrics = Statistics.together(statistics, loss.device).metrics(problem.spec)
    return LossResult(per_datum.sum(), per_datum, gradient, metrics)


def _tokens(problem: Problem, sequence_ratios: Tensor | None) -> _Tokens:
    advantages = problem.inputs["advantages"]
    active = advantages != 0
    weights = problem.inputs.get("weights")
    if weights is not None:
        active = active & (weights != 0)
    lp = _masked(problem.logprobs, active)
    shift = lp - _masked(problem.inputs["logprobs"], active)
    ratio = shift.exp() if sequence_ratios is None else torch.where(active, sequence_ratios, 1.0)
    return _Tokens(active, lp, _masked(advantages, active), shift, ratio)


def _sequence_ratios(problem: Problem) -> Tensor:
    counted = problem.inputs["sequence_ratio_mask"] != 0
    shift = _masked(problem.logprobs, counted) - _masked(problem.inputs["logprobs"], counted)
    sums = _per_datum(shift, problem.offsets)
    counts = _per_datum(counted.double(), problem.offsets)
    return (sums / counts.clamp(min=1)).exp().repeat_interleave(problem.offsets.diff())


def _statistics(tokens: _Tokens, terms: _Terms) -> Statistics:
    active, ratio = tokens.active, tokens.ratio
    zero = ratio.new_zeros(())
    return Statistics(
        active=active.sum().double(),
        clipped=zero if terms.clipped is None else (terms.clipped & active).sum().double(),
        ratio=torch.where(active, ratio, 0.0).sum(),
        # These are 0 where masked.
        kl_k1=-tokens.shift.sum(),
        kl_k3=(torch.expm1(tokens.shift) - tokens.shift).sum(),
        kl_ref=zero if terms.kl_ref is None else terms.kl_ref.sum(),
        ratio_min=torch.where(active, ratio, torch.inf).min(),
        ratio_max=torch.where(active, ratio, -torch.inf).max(),
    )


def _importance_sampling(problem: Problem, tokens: _Tokens) -> _Terms:
    scaled = -tokens.a * tokens.ratio
    weights = problem.inputs.get("weights")
    if weights is not None:
        scaled = scaled * _masked(weights, tokens.active)
    return _Terms(scaled, scaled)


def _bounds(problem: Problem, tokens: _Tokens) -> tuple[Tensor, Tensor]:
    """(low, high), where low is at most high, as a clamp takes them; 1 where masked."""
    low, high = (
        torch.where(
            tokens.active,
            torch.as_tensor(problem.bound(name), dtype=torch.float64, device=tokens.lp.device),
            1.0,
        )
        for name in (LOW, HIGH)
    )
    return torch.minimum(low, high), high


def _clipped_objective(problem: Problem, tokens: _Tokens) -> _Terms:
    _, _, a, _, r = tokens
    low, high = _bounds(problem, tokens)
    clipped = torch.where(a > 0, r > high, r < low)
    used = torch.where(clipped, r.clamp(low, high), r)
    loss = -a * used
    return _Terms(loss, torch.where(clipped, 0.0, loss), clipped)


def _cispo(problem: Problem, tokens: _Tokens) -> _Terms:
    low, high = _bounds(problem, tokens)
    clipped = (tokens.ratio < low) | (tokens.ratio > high)
    gradient = -tokens.ratio.clamp(low, high) * tokens.a
    return _Terms(gradient * tokens.lp, gradient, clipped)


def _dro(problem: Problem, tokens: _Tokens) -> _Terms:
    beta = problem.settings["beta"]
    penalty = 0.5 * beta * tokens.shift.square()
    return _Terms(penalty - tokens.a * tokens.lp, beta * tokens.shift - tokens.a)


def _dppo(problem: Problem, tokens: _Tokens) -> _Terms:
    settings = problem.settings
    _, lp, a, shift, r = tokens
    rise = lp.exp() - (lp - shift).exp()
    masked = torch.where(
        a > 0, rise > settings["dppo_mask_high"], rise < -settings["dppo_mask_low"]
    )
    scaled = settings["adv_tau"] * a
    push = torch.where(masked | (scaled == 0), 0.0, -scaled * r)
    tau = settings["kl_tau"]
    return _Terms(push + tau * shift.square(), push + 2 * tau * shift, masked)


def _grpo(problem: Problem, tokens: _Tokens) -> _Terms:
    loss, gradient, clipped, _ = _clipped_objective(problem, tokens)
    away = _masked(problem.inputs["ref_logprobs"], tokens.active) - tokens.lp
    k3 = torch.expm1(away) - away
    beta = problem.settings["beta"]
    if beta:  # 0 times an infinite penalty would be no number
        loss, gradient = loss + beta * k3, gradient - beta * torch.expm1(away)
    return _Terms(loss, gradient, clipped, k3)


_TERMS: Mapping[str, Callable[[Problem, _Tokens], _Terms]] = {
    "importance_sampling": _importance_sampling,
    "ppo": _clipped_objective,
    "cispo": _cispo,
    "dro": _dro,
    "gspo": _clipped_objective,
    "dppo": _dppo,
    "grpo": _grpo,
}
