"""The losses in Triton: one pass over the tokens gives loss, gradient and metrics.

gspo and dpo need a sum over each datum before the first gradient, so they begin with a pass of
their own that makes one number a datum.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinkergate_kernels.gpu.datum_sums import TILE, WARPS, Plan, plan_of, read, sums_of_datums
from tinkergate_kernels.gpu.shipped import Bounds, Shipped
from tinkergate_kernels.losses.pairs import preference
from tinkergate_kernels.losses.problem import LossResult, Problem, Statistics

STATISTICS = 8
"""Numbers that a tile says beside the losses: six sums, a minimum and a maximum."""


@triton.jit
def _exp(x):
    """exp, of which the error does not grow with x: the whole powers of two are split off first.
    Keeps NaN, and overflows to inf."""
    x = tl.where(x < -200.0, -200.0, x)
    x = tl.where(x > 200.0, 200.0, x)
    whole = tl.floor(x * 1.4426950408889634 + 0.5)
    # ln 2 in two parts, of which the first is short enough for its product to be exact.
    rest = (x - whole * 0.693359375) + whole * 2.12194440e-4
    return tl.exp2(rest * 1.4426950408889634) * tl.exp2(whole - 1.0) * 2.0


@triton.jit
def loss_tiles(
    Logprobs,
    Sampled,
    Advantages,
    Weights,
    Reference,
    Low,
    High,
    Scalars,
    Offsets,
    First,
    Last,
    Gradient,
    Partials,
    Statistics,
    first_tile,
    tokens,
    tiles,
    low,
    high,
    beta,
    tau,
    KIND: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    TOKEN_LOW: tl.constexpr,
    TOKEN_HIGH: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of each token, and what each tile adds to its datums' losses and to the
    metrics. Scalars holds a number for each datum: gspo's ratio, dpo's slope."""
    tile = first_tile + tl.program_id(0).to(tl.int64)
    at = tile * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    first = tl.load(First + tile)
    last = tl.load(Last + tile)

    scalar = tl.full((BLOCK,), 1.0, tl.float32)
    if KIND == "gspo" or KIND == "dpo":
        for datum in tl.range(first, last + 1):
            mine = (at >= tl.load(Offsets + datum)) & (at < tl.load(Offsets + datum + 1))
            scalar = tl.where(mine, tl.load(Scalars + datum), scalar)

    weight = read(Weights, at, inside, FULL) if HAS_WEIGHTS else tl.where(inside, 1.0, 0.0)

    if KIND == "dpo":
        gradient = tl.where(weight != 0.0, scalar * weight, 0.0)
    else:
        clipped = tl.zeros((BLOCK,), tl.int1)
        reference_kl = tl.zeros((BLOCK,), tl.float32)
        if KIND == "cross_entropy":
            active = weight != 0.0
            lp = tl.where(active, read(Logprobs, at, inside, FULL), 0.0)
            shift = tl.zeros((BLOCK,), tl.float32)
            ratio = scalar
            gradient = -weight
            loss = gradient * lp
        else:
            advantage = read(Advantages, at, inside, FULL)
            active = advantage != 0.0
            if KIND == "importance_sampling" and HAS_WEIGHTS:
                active = active & (weight != 0.0)
            # 0 where masked: a product with 0 would let infinities through.
            lp = tl.where(active, read(Logprobs, at, inside, FULL), 0.0)
            lq = tl.where(active, read(Sampled, at, inside, FULL), 0.0)
            advantage = tl.where(active, advantage, 0.0)
            shift = lp - lq
            token_ratio = _exp(shift)
            ratio = tl.where(active, scalar, 1.0) if KIND == "gspo" else token_ratio

            if KIND == "importance_sampling":
                gradient = -advantage * ratio
                if HAS_WEIGHTS:
                    gradient = gradient * tl.where(active, weight, 0.0)
                loss = gradient
            elif KIND == "dro":
                gradient = beta * shift - advantage
                loss = 0.5 * beta * shift * shift - advantage * lp
            elif KIND == "dppo":
                rise = _exp(lp) - _exp(lq)
                clipped = tl.where(advantage > 0.0, rise > high, rise < -low)
                scaled = tau * advantage
                push = tl.where(clipped | (scaled == 0.0), 0.0, -scaled * ratio)
                gradient = push + 2.0 * beta * shift
                loss = push + beta * shift * shift
            else:
                top = read(High, at, inside, FULL) if TOKEN_HIGH else high
                bottom = read(Low, at, inside, FULL) if TOKEN_LOW else low
                top = tl.where(active, top, 1.0)
                bottom = tl.minimum(tl.where(active, bottom, 1.0), top)
                bounded = tl.where(ratio < bottom, bottom, tl.where(ratio > top, top, ratio))
                if KIND == "cispo":
                    clipped = (ratio < bottom) | (ratio > top)
                    gradient = -bounded * advantage
                    loss = gradient * lp
                else:
                    clipped = tl.where(advantage > 0.0, ratio > top, ratio < bottom)
                    loss = -advantage * tl.where(clipped, bounded, ratio)
                    gradient = tl.where(clipped, 0.0, loss)
                if KIND == "grpo":
                    away = tl.where(active, read(Reference, at, inside, FULL), 0.0) - lp
                    slope = _exp(away) - 1.0
                    reference_kl = slope - away
                    # 0 times an infinite penalty would be no number.
                    loss = loss + tl.where(beta != 0.0, beta * reference_kl, 0.0)
                    gradient = gradient - tl.where(beta != 0.0, beta * slope, 0.0)
            gradient = tl.where(active, gradient, 0.0)

            one = tl.where(active, 1.0, 0.0)
            k3 = tl.where(active, token_ratio - 1.0 - shift, 0.0)
            inf = float("inf")
            own = Statistics + tile
            tl.store(own, tl.sum(one))
            tl.store(own + tiles, tl.sum(tl.where(active & clipped, 1.0, 0.0)))
            tl.store(own + 2 * tiles, tl.sum(tl.where(active, ratio, 0.0)))
            tl.store(own + 3 * tiles, tl.sum(-shift))
            tl.store(own + 4 * tiles, tl.sum(k3))
            tl.store(own + 5 * tiles, tl.sum(reference_kl))
            tl.store(own + 6 * tiles, tl.min(tl.where(active, ratio, inf)))
            tl.store(own + 7 * tiles, tl.max(tl.where(active, ratio, -inf)))

        for datum in tl.range(first, last + 1):
            mine = (at >= tl.load(Offsets + datum)) & (at < tl.load(Offsets + datum + 1))
            tl.store(Partials + tile + datum, tl.sum(tl.where(mine, loss, 0.0)))

    if FULL:
        tl.store(Gradient + at, gradient)
    else:
        tl.store(Gradient + at, gradient, mask=inside)


def solve(problem: Problem) -> LossResult:
    """The loss of a problem on a GPU, or under Triton's interpreter."""
    plan = plan_of(problem)
    match problem.spec.name:
        case "gspo":
            sampled, mask = (problem.inputs[n] for n in ("logprobs", "sequence_ratio_mask"))
            total, count = sums_of_datums(problem, plan, sampled, mask)
            scalars = (total / count.clamp(min=1)).exp().float()
        case "dpo":
            weights, reference = (problem.inputs[n] for n in ("weights", "ref_logprobs"))
            (margins,) = sums_of_datums(problem, plan, reference, weights)
            pairs = preference(margins, problem.settings)
            gradient, _, _ = _launch(problem, plan, pairs.slope.float())
            return LossResult(pairs.per_datum.sum(), pairs.per_datum, gradient, pairs.metrics)
        case _:
            scalars = problem.logprobs
    gradient, partials, statistics = _launch(problem, plan, scalars)
    per_datum = plan.sums(partials, problem.offsets)
    metrics = {}
    if problem.spec.metrics:
        metrics = _totals(statistics).metrics(problem.spec)
    return LossResult(per_datum.sum(), per_datum, gradient, metrics)


def _launch(problem: Problem, plan: Plan, scalars: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient [M], losses [slots], statistics [STATISTICS, tiles])."""
    lp, inputs, settings = problem.logprobs, problem.inputs, problem.settings
    gradient = torch.empty_like(lp)
    partials = torch.empty(plan.slots, device=lp.device)
    statistics = torch.empty(STATISTICS, plan.tiles, device=lp.device)
    low, high = inputs.get("clip_low_threshold"), inputs.get("clip_high_threshold")
    for first_tile, count, full in plan.launches():
        loss_tiles[(count,)](
            lp,
            # What a loss does not have it does not read.
            inputs.get("logprobs", lp),
            inputs.get("advantages", lp),
            inputs.get("weights", lp),
            inputs.get("ref_logprobs", lp),
            lp if low is None else low,
            lp if high is None else high,
            scalars,
            problem.offsets,
            plan.first,
            plan.last,
            gradient,
            partials,
            statistics,
            first_tile,
            plan.tokens,
            plan.tiles,
            settings.get("clip_low_threshold", settings.get("dppo_mask_low", 0.0)),
            settings.get("clip_high_threshold", settings.get("dppo_mask_high", 0.0)),
            settings.get("kl_tau", settings.get("beta", 0.0)),
            settings.get("adv_tau", 1.0),
            KIND=problem.spec.name,
            HAS_WEIGHTS="weights" in inputs,
            TOKEN_LOW=low is not None,
            TOKEN_HIGH=high is not None,
            FULL=full,
            BLOCK=TILE,
            num_warps=WARPS,
        )
    return gradient, partials, statistics


def _totals(statistics: Tensor) -> Statistics:
    """Over the tiles, in order."""
    sums = list(statistics[:6].double().sum(dim=1))
    lowest, highest = statistics[6:].double()
    # Without tiles there are no active tokens, and nobody asks for the extremes.
    extremes = [lowest.min(), highest.max()] if lowest.numel() else sums[:2]
    return Statistics(*sums, *extremes)


_SIGNATURE = {
    **dict.fromkeys(
        ("Logprobs", "Sampled", "Advantages", "Weights", "Reference", "Low", "High", "Scalars"),
        "*fp32",
    ),
    **dict.fromkeys(("Offsets", "First", "Last"), "*i64"),
    **dict.fromkeys(("Gradient", "Partials", "Statistics"), "*fp32"),
    **dict.fromkeys(("first_tile", "tokens", "tiles"), "i32"),
    **dict.fromkeys(("low", "high", "beta", "tau"), "fp32"),
}
_ARRAYS = (
    "Logprobs",
    "Sampled",
    "Advantages",
    "Weights",
    "Reference",
    "Low",
    "High",
    "Gradient",
)
_VARIANTS: dict[str, dict[str, Any]] = {
    "cross_entropy": {"HAS_WEIGHTS": True},
    "importance_sampling": {"HAS_WEIGHTS": True},
    "ppo": {},
    "ppo, thresholds of tokens": {"KIND": "ppo", "TOKEN_LOW": True, "TOKEN_HIGH": True},
    "cispo": {},
    "dro": {},
    "gspo": {},
    "dppo": {},
    "dpo": {"HAS_WEIGHTS": True},
    "grpo": {},
}


def _shipped() -> list[Shipped]:
    return [
        Shipped(
            name=f"loss_tiles {name}{'' if full else ', last tile'}",
            kernel=loss_tiles,
            signature=_SIGNATURE,
            constants={
                "KIND": name,
                "HAS_WEIGHTS": False,
                "TOKEN_LOW": False,
                "TOKEN_HIGH": False,
                "FULL": full,
                "BLOCK": TILE,
            }
            | flags,
            divisible_by_16=_ARRAYS,
            num_warps=WARPS,
            bounds=Bounds(wide_loads=full),
        )
        for name, flags in _VARIANTS.items()
        for full in (True, False)
    ]


SHIPPED: tuple[Shipped, ...] = tuple(_shipped())
