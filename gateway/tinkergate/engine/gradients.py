"""The gradients of a model between two optimizer steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinkergate.errors import ErrorReason, GatewayError, Kind


class Accumulated(NamedTuple):
    """What an optimizer step takes."""

    parts: list[Tensor] | None
    """Of the parameters, in order; None means zero."""
    tokens: int | None
    """The active tokens that they were divided by, if they are per token; 0 divides nothing."""


class Gradients:
    """Adds up the gradients of one model. They are all sums, or all per token: then their sum is
    divided by the number of active tokens behind it when it is taken."""

    def __init__(self) -> None:
        self._parts: list[Tensor] | None = None
        self._per_token = False
        self._tokens = 0

    @property
    def parts(self) -> list[Tensor] | None:
        """Their sum so far, of the parameters in order; None means zero."""
        return self._parts

    def check(self, *, per_token: bool) -> None:
        """Raise GatewayError if such a gradient cannot be added to those that are there."""
        if self._parts is None or per_token == self._per_token:
            return
        kinds = {False: "sums", True: "per token"}
        raise GatewayError(
            Kind.PRECONDITION,
            ErrorReason.ERROR_REASON_NORMALIZATION_MIXED,
            f"the gradients since the last optimizer step are {kinds[self._per_token]} and this "
            f"one is {kinds[per_token]}: they do not add up; take the step between them",
        )

    def add(self, parts: list[Tensor] | None, *, per_token: bool = False, tokens: int = 0) -> None:
        """Add a gradient that was checked, with the number of active tokens behind it. `parts` is
        kept, and written to."""
        if parts is None:
            return
        self._parts = added(self._parts, parts)
        self._per_token = per_token
        self._tokens += tokens

    def take(self) -> Accumulated:
        """What they come to; nothing is left."""
        parts, per_token, tokens = self._parts, self._per_token, self._tokens
        self.clear()
        if not per_token:
            return Accumulated(parts, None)
        if parts is not None and tokens:
            torch._foreach_div_(parts, tokens)
        return Accumulated(parts, tokens)

    def clear(self) -> None:
        """Forget them."""
        self._parts, self._per_token, self._tokens = None, False, 0


def added(total: list[Tensor] | None, more: list[Tensor] | None) -> list[Tensor] | None:
    """Gradients added up, in place; None means zero."""
    if total is None or more is None:
        return more if total is None else total
    torch._foreach_add_(total, more)
    return total
