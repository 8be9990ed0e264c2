"""The losses that the engine trains with, by name.

A loss is a sum over the tokens of a call, with no mean of any kind, so the loss of a call is the
sum of the losses of its micro-batches. One entry in `LOSSES` is all that a new loss needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tinkergate.errors import Violation, invalid, invalid_field

TARGETS = "target_tokens"
"""The input that every loss has: the int64 token ids that are scored, (N,) or (N, K)."""

LossSettings = Mapping[str, float | str]
"""The settings of a loss by name."""

LossFunction = Callable[
    [Tensor, Mapping[str, Tensor], LossSettings], tuple[Tensor, dict[str, float]]
]
"""(logprobs, inputs, settings) -> (loss, metrics). `logprobs` and every input are float32 and
shaped like the target tokens of one micro-batch; the loss is their sum, a scalar that logprobs
can be differentiated through; metrics are named `name:reduction`."""


@dataclass(frozen=True)
class Example:
    """One training example."""

    tokens: NDArray[np.int64]
    """The model's input, (N,)."""
    inputs: Mapping[str, NDArray[Any]]
    """The loss's inputs by name, (N,) or (N, K) like "target_tokens", of which entry i is scored
    given tokens 0..i."""


@dataclass(frozen=True)
class LossSpec:
    """A loss: what it takes and how it is computed."""

    function: LossFunction
    required: frozenset[str] = frozenset()
    """Inputs that every example must have, besides the target tokens."""
    optional: Mapping[str, float] = field(default_factory=dict)
    """Inputs that an example may leave out, with the number that then stands for each entry."""
    settings: frozenset[str] = frozenset()
    """The names of the settings that it knows."""


def _cross_entropy(
    logprobs: Tensor, inputs: Mapping[str, Tensor], _: LossSettings
) -> tuple[Tensor, dict[str, float]]:
    """-sum w * logprob, for any real weights."""
    return -(inputs["weights"] * logprobs).sum(), {}


LOSSES: Mapping[str, LossSpec] = {
    "cross_entropy": LossSpec(_cross_entropy, optional={"weights": 1.0}),
}


def checked_loss(name: str, settings: LossSettings, examples: Sequence[Example]) -> LossSpec:
    """The loss of that name. Raises GatewayError naming every field by which the call breaks its
    rules: an unknown loss or setting, an input that is missing, unknown, or not of the target
    tokens' shape, target tokens that are not one row for each token."""
    spec = LOSSES.get(name)
    if spec is None:
        raise invalid_field("loss_fn", f"is {name!r}; must be one of {', '.join(LOSSES)}")
    violations = [
        Violation(f"loss_fn_config[{key!r}]", f"is not a setting of {name}")
        for key in settings
        if key not in spec.settings
    ]
    for index, example in enumerate(examples):
        violations += _input_violations(name, spec, example, f"data[{index}]")
    if violations:
        raise invalid(violations)
    return spec


def _input_violations(name: str, spec: LossSpec, example: Example, where: str) -> list[Violation]:
    known = {TARGETS} | spec.required | spec.optional.keys()
    found = [
        Violation(f"{where}.loss_fn_inputs[{key!r}]", f"is not an input of {name}")
        for key in example.inputs
        if key not in known
    ]
    missing = ({TARGETS} | spec.required) - example.inputs.keys()
    found += [
        Violation(f"{where}.loss_fn_inputs[{key!r}]", f"is missing; {name} needs it")
        for key in sorted(missing)
    ]
    targets = example.inputs.get(TARGETS)
    if targets is None:
        return found
    count = len(example.tokens)
    if count == 0:
        found.append(Violation(f"{where}.model_input", "has no tokens; must have one or more"))
    if targets.ndim not in (1, 2) or targets.shape[0] != count:
        found.append(
            Violation(
                f"{where}.loss_fn_inputs[{TARGETS!r}]",
                f"has shape {list(targets.shape)}; must be [{count}] or [{count}, K]",
            )
        )
    return found + [
        Violation(
            f"{where}.loss_fn_inputs[{key!r}]",
            f"has shape {list(array.shape)}; must be that of {TARGETS}, {list(targets.shape)}",
        )
        for key, array in example.inputs.items()
        if key in known and array.shape != targets.shape
    ]


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
