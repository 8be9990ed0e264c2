"""Learning from a reference: the reverse KL divergence of one adapter's predictions from those of
another adapter, or of the bare base model. See `reverse_kl` for the formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinkergate.engine.adapters import Adapters
from tinkergate.engine.attention import PackedPlan
from tinkergate.engine.base import BaseModel
from tinkergate.engine.packing import end_to_end
from tinkergate.engine.reverse_kl import Rows, weighted_divergence
from tinkergate.engine.threads import threads_for
from tinkergate.errors import Violation, invalid


@dataclass(frozen=True)
class Comparison:
    """One text on which a model and its reference are compared. Their inputs are paired from the
    end: the last row of one with the last of the other, and so on."""

    tokens: NDArray[np.int64]
    """What the model reads, (N,)."""
    reference_tokens: NDArray[np.int64]
    """What the reference reads, (M,); from the first row on that counts, what the model reads."""
    weights: NDArray[np.float32]
    """(N,): of each row, of either sign; 0 leaves it out."""

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the model that count."""
        return np.flatnonzero(self.weights)

    @property
    def reference_rows(self) -> NDArray[np.int64]:
        """The rows of the reference that they are compared with."""
        return self.rows + (len(self.reference_tokens) - len(self.tokens))


def checked_comparisons(texts: Sequence[Comparison], temperature: float) -> None:
    """Raise GatewayError naming every field by which a call breaks the rules of `Comparison`."""
    violations = []
    if not (np.isfinite(temperature) and temperature > 0):
        told = f"is {temperature}; must be finite and greater than 0"
        violations.append(Violation("temperature", told))
    for index, text in enumerate(texts):
        where = f"data[{index}]"
        count = len(text.tokens)
        if count == 0:
            told = "has no tokens; must have one or more"
            violations.append(Violation(f"{where}.student_input", told))
        if text.weights.shape != (count,):
            told = f"has shape {list(text.weights.shape)}; must be [{count}]"
            violations.append(Violation(f"{where}.weights", told))
        elif len(text.rows):
            following = text.tokens[text.rows[0] + 1 :]
            needed, there = 1 + len(following), text.reference_tokens
            if len(there) < needed:
                told = f"has {len(there)} tokens; the rows that count need at least {needed}"
                violations.append(Violation(f"{where}.reference_input", told))
            elif not np.array_equal(there[len(there) - len(following) :], following):
                told = (
                    f"does not end with the {len(following)} tokens that the student reads after "
                    "its first row whose weight is not 0"
                )
                violations.append(Violation(f"{where}.reference_input", told))
    if violations:
        raise invalid(violations)


class DistillationOutcome(NamedTuple):
    """What one micro-batch gave."""

    losses: list[float]
    """Of each text: the weighted sum over its rows."""
    divergences: NDArray[np.float64]
    """KL(p || q) of every row that counts, in nats."""
    gradients: list[Tensor] | None
    """Of the adapter's parameters, in order; None if no row counts."""


def distil(
    base: BaseModel,
    adapters: Adapters,
    name: str,
    reference: str | None,
    texts: Sequence[Comparison],
    temperature: float,
) -> DistillationOutcome:
    """The losses of some texts and their gradient in the parameters of the adapter `name`. The
    reference is another adapter, or the bare base model (None); it gets no gradient. Both read
    their inputs whole; logits are there for a tile of rows at a time."""
    parameters = [parameter for _, parameter in adapters.parameters(name)]
    weights = np.concatenate([text.weights[text.rows] for text in texts], dtype=np.float32)
    if not len(weights):
        return DistillationOutcome([0.0] * len(texts), np.zeros(0), None)
    count = sum(len(text.tokens) + len(text.reference_tokens) for text in texts)
    with threads_for(count, base.parameter_count):
        with adapters.active(reference), torch.no_grad():
            theirs = _rows(base, [(t.reference_tokens, t.reference_rows) for t in texts])
        with adapters.active(name), torch.enable_grad():
            ours = _rows(base, [(t.tokens, t.rows) for t in texts])
        found = weighted_divergence(
            ours, theirs, torch.from_numpy(weights).to(base.device), temperature
        )
        through: Sequence[Tensor | None] = [None] * len(parameters)
        if ours.hidden.requires_grad:
            through = torch.autograd.grad(
                ours.hidden, parameters, found.hidden.to(ours.hidden.dtype), allow_unused=True
            )
    gradients = [
        torch.zeros_like(parameter, requires_grad=False) if gradient is None else gradient
        for parameter, gradient in zip(parameters, through, strict=True)
    ]
    lora = ours.unembedding.lora
    if lora is not None:
        for factor, gradient in ((lora.a, found.a), (lora.b, found.b)):
            [place] = [i for i, parameter in enumerate(parameters) if parameter is factor]
            assert gradient is not None
            gradients[place] += gradient
    divergences = found.divergence.cpu().numpy()
    cuts = np.cumsum([len(text.rows) for text in texts])[:-1]
    losses = [float(part.sum()) for part in np.split(weights * divergences, cuts)]
    return DistillationOutcome(losses, divergences, gradients)


def _rows(base: BaseModel, inputs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Rows:
    """The predictions at some rows of each of several sequences, under the active adapter."""
    lengths = [len(tokens) for tokens, _ in inputs]
    starts = np.cumsum([0, *lengths[:-1]])
    places = [start + rows for start, (_, rows) in zip(starts, inputs, strict=True)]
    hidden = base.hidden(
        end_to_end([tokens for tokens, _ in inputs], np.int64, base.device),
        end_to_end([np.arange(length) for length in lengths], np.int64, base.device),
        PackedPlan(lengths),
    )
    return Rows(hidden[end_to_end(places, np.int64, base.device)], base.unembedding())
