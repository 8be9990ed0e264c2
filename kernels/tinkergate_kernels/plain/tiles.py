"""Rows in tiles of one height: libraries choose how they sum by it, and a row is to have the same
bits alone as in any batch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import pad

HEIGHT = 128
"""Rows of a tile. Its logits take 25 MB for 49152 tokens, a few times while gradients are made."""


def tiles_of(count: int) -> Iterator[slice]:
    """The rows, cut into those of one tile each."""
    for begin in range(0, count, HEIGHT):
        yield slice(begin, min(begin + HEIGHT, count))


def filled(rows: Tensor, value: float = 0) -> Tensor:
    """Rows [R, ...], and rows of `value` up to the height of a tile."""
    return pad(rows, [0, 0] * (rows.ndim - 1) + [0, HEIGHT - len(rows)], value=value)
