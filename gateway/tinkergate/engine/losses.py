"""What the engine asks of a call with one of the losses of `tinkergate_kernels`, and how the
micro-batches of a call come together.

A loss is a sum over the tokens of a call, with no mean of any kind, so the loss of a call is the
sum of the losses of its micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tinkergate.errors import Violation, invalid, invalid_field
from tinkergate_kernels.losses import LOSSES, LossSpec

TARGETS = "target_tokens"
"""The input that every loss has: the int64 token ids that are scored, (N,) or (N, K)."""

WEIGHTS = "weights"
"""The input by which some losses weigh tokens."""

LossSettings = Mapping[str, float | str]
"""The settings of a loss by name."""


@dataclass(frozen=True)
class Example:
    """One training example."""

    tokens: NDArray[np.int64]
    """The model's input, (N,)."""
    inputs: Mapping[str, NDArray[Any]]
    """The loss's inputs by name, (N,) or (N, K) like "target_tokens", of which entry i is scored
    given tokens 0..i."""


def checked_loss(name: str, settings: LossSettings, examples: Sequence[Example]) -> LossSpec:
    """The loss of that name. Raises GatewayError naming every field by which the call breaks its
    rules: an unknown loss; a setting that is unknown, no number or out of range; an input that is
    missing, unknown, or not of the target tokens' shape; target tokens that are not one row for
    each token, or several a token where the loss takes one; an odd number of examples where it
    takes pairs."""
    spec = LOSSES.get(name)
    if spec is None:
        raise invalid_field("loss_fn", f"is {name!r}; must be one of {', '.join(LOSSES)}")
    violations = [
        Violation(f'loss_fn_config["{key}"]', told) for key, told in spec.faults(settings)
    ]
    if spec.paired and len(examples) % 2:
        told = f"has {len(examples)} datums; {name} takes pairs, even = chosen, odd = rejected"
        violations.append(Violation("data", told))
    for index, example in enumerate(examples):
        violations += _input_violations(spec, example, f"data[{index}]")
    if violations:
        raise invalid(violations)
    return spec


def _input_violations(spec: LossSpec, example: Example, where: str) -> list[Violation]:
    known = {TARGETS, *spec.inputs}
    found = [
        Violation(f'{where}.loss_fn_inputs["{key}"]', f"is not an input of {spec.name}")
        for key in example.inputs
        if key not in known
    ]
    found += [
        Violation(f'{where}.loss_fn_inputs["{key}"]', f"is missing; {spec.name} needs it")
        for key in (TARGETS, *spec.required)
        if key not in example.inputs
    ]
    targets = example.inputs.get(TARGETS)
    if targets is None:
        return found
    count = len(example.tokens)
    if count == 0:
        found.append(Violation(f"{where}.model_input", "has no tokens; must have one or more"))
    if targets.ndim not in (1, 2)[: 1 + spec.many_targets] or targets.shape[0] != count:
        wanted = f"[{count}] or [{count}, K]" if spec.many_targets else f"[{count}]"
        found.append(
            Violation(
                f'{where}.loss_fn_inputs["{TARGETS}"]',
                f"has shape {list(targets.shape)}; must be {wanted}",
            )
        )
    return found + [
        Violation(
            f'{where}.loss_fn_inputs["{key}"]',
            f"has shape {list(array.shape)}; must be that of {TARGETS}, {list(targets.shape)}",
        )
        for key, array in example.inputs.items()
        if key in known and array.shape != targets.shape
    ]


def active_tokens(weights: Tensor | None, count: int, metrics: Mapping[str, float]) -> int:
    """How many of `count` tokens are not masked, by the metrics of their loss, or if it does not
    say by their weights, (count,) or (count, K): one of K targets is enough. Without weights, all
    are there."""
    said = metrics.get("active_tokens:sum")
    if said is not None:
        return round(said)
    if weights is None:
        return count
    return int((weights.view(count, -1) != 0).any(dim=1).sum())


class MetricTotals:
    """Metrics of the micro-batches of a call, put together by the reduction in their names: `sum`,
    `min`, `max`, or `mean`, which weighs by examples."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[float, int]]] = {}

    def add(self, metrics: Mapping[str, float], examples: int) -> None:
        """Take in the metrics of a micro-batch of so many examples."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append((value, examples))

    def result(self) -> dict[str, float]:
        """The metrics of the call."""
        return {name: _reduced(name, values) for name, values in self._values.items()}


def _reduced(name: str, values: list[tuple[float, int]]) -> float:
    numbers = [value for value, _ in values]
    match name.rpartition(":")[2]:
        case "sum":
            return sum(numbers)
        case "min":
            return min(numbers)
        case "max":
            return max(numbers)
        case "mean":
            return sum(v * n for v, n in values) / sum(n for _, n in values)
        case other:
            raise ValueError(f"metric {name!r} has the unknown reduction {other!r}")
