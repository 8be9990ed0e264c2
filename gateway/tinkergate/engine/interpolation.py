"""The weighted sum of LoRA adapters, as one adapter.

An adapter of rank r and alpha changes a weight by delta = (alpha / r) B A. For coefficients c the
new adapter's change is

    delta = sum_i c_i delta_i = [c_1 s_1 B_1, c_2 s_2 B_2, ...] [A_1; A_2; ...]
    s_i = alpha_i / r_i

that is, the factors side by side, with scale 1 and the sum of the ranks for its rank. Nothing is
cut off and nothing decomposed, so the sum is exact but for the rounding of c_i s_i B_i to float32.
A module that one of the adapters leaves alone has zeros in its place.

Adding up what fine-tuning changed is task arithmetic (Ilharco et al. 2023, arXiv:2212.04089); to do
it by concatenation is what PEFT calls "cat". MinT has not published the formula of its own call;
that coefficients multiply the changes, with no sum of 1 asked for, is inferred from its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tinkergate.engine.peft_format import adapted_paths, rank_and_alpha, weight_key
from tinkergate.errors import Violation, invalid

Adapter = tuple[Mapping[str, Any], Mapping[str, Tensor]]
"""A PEFT configuration, and the weights by PEFT's keys."""


def check_coefficients(count: int, coefficients: Sequence[float]) -> None:
    """Raise GatewayError for no sources at all, for another number of coefficients than sources,
    and for coefficients that are not finite."""
    violations = []
    if not count:
        violations.append(Violation("source_paths", "is empty; needs at least one checkpoint"))
    if len(coefficients) != count:
        told = f"has {len(coefficients)} entries; must have one for each of the {count} sources"
        violations.append(Violation("coefficients", told))
    violations += [
        Violation(f"coefficients[{index}]", f"is {value}; must be finite")
        for index, value in enumerate(coefficients)
        if not math.isfinite(value)
    ]
    if violations:
        raise invalid(violations)


def interpolated(
    adapters: Sequence[Adapter], coefficients: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The weighted sum of adapters of one base model: what of its configuration decides the numbers
    ("peft_type", "r", "lora_alpha"), and its float32 weights. Raises GatewayError as
    `check_coefficients` does, and for an adapter that is not plain LoRA or whose factors have other
    shapes than those of the same module in another."""
    check_coefficients(len(adapters), coefficients)
    ranks = [rank_and_alpha(config) for config, _ in adapters]
    paths = sorted({path for _, weights in adapters for path in adapted_paths(weights)})
    rank = sum(own for own, _ in ranks)
    summed: dict[str, Tensor] = {}
    for path in paths:
        key_a, key_b = weight_key(path, "A"), weight_key(path, "B")
        here = next(weights for _, weights in adapters if key_a in weights)
        a = torch.zeros(rank, here[key_a].shape[1])
        b = torch.zeros(here[key_b].shape[0], rank)
        start = 0
        for (_, weights), (own, alpha), coefficient in zip(
            adapters, ranks, coefficients, strict=True
        ):
            part = slice(start, start + own)
            start += own
            if key_a in weights:
                a[part] = weights[key_a]
                b[:, part] = weights[key_b].double() * (coefficient * alpha / own)
        summed[key_a], summed[key_b] = a, b
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank}, summed
