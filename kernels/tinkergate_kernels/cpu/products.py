"""Matrix products of a tile, by whichever library is quickest here.

PyTorch's library (MKL) takes a plain path on processors of other makers than its own, where NumPy's
(OpenBLAS) is up to twice as fast; elsewhere the two are equal. What is quickest is found out once
for a width, by a short trial.

A tile's height is one of a few, and short tiles are filled up, because libraries choose how they
sum by the height: a row must get the same bits in a batch of one and of a thousand. Of the heights
those are used that give the same bits, which the trial finds out too: for one height and width the
order of a sum depends on nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tinkergate_kernels.cpu.workers import numpy_alone, run_all

COLUMNS = 768
"""Tokens in a tile: its logits stay in a core's own cache. Products that sum over more are cut by some
libraries, and differently for short tiles."""

HEIGHTS = (32, 128, 512)
"""Rows of a tile. The more, the nearer a product comes to the processor's rate."""

_ADVANTAGE = 1.2
"""How much quicker NumPy has to be: less could be chance, and another library has other bits."""


@dataclass(frozen=True)
class Products:
    """How tiles are multiplied."""

    numpy: bool
    """By NumPy's library, else PyTorch's."""
    heights: tuple[int, ...]
    """The heights that give the same bits, least first."""

    def height_for(self, rows: int) -> int:
        """The height of the tile that takes so many rows, or as many of them as one can."""
        return next((height for height in self.heights if height >= rows), self.heights[-1])

    def logits(self, rows: Tensor, weight: Tensor, out: Tensor) -> None:
        """out = rows @ weight.T: [R, D], [C, D] and [R, C], float32."""
        if self.numpy:
            np.matmul(rows.numpy(), weight.numpy().T, out=out.numpy())
        else:
            torch.mm(rows, weight.t(), out=out)

    def accumulate(self, tile: Tensor, weight: Tensor, total: Tensor, scratch: Tensor) -> None:
        """total += tile @ weight: [R, C], [C, D] and [R, D], float32; `scratch` is like `total`."""
        if self.numpy:
            np.matmul(tile.numpy(), weight.numpy(), out=scratch.numpy())
            total.add_(scratch)
        else:
            total.addmm_(tile, weight)


@cache
def products_for(width: int) -> Products:
    """How to multiply states of this width here."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(HEIGHTS[-1], width, generator=generator)
    weight = torch.randn(COLUMNS, width, generator=generator)
    found: list[Products] = []

    def trial(_: int) -> None:
        by_torch, by_numpy = Products(False, HEIGHTS), Products(True, HEIGHTS)
        out = rows.new_empty(len(rows), COLUMNS)
        times = [
            min(_seconds(lambda p=p: p.logits(rows, weight, out)) for _ in range(5))
            for p in (by_torch, by_numpy)
        ]
        chosen = by_numpy if times[0] > _ADVANTAGE * times[1] else by_torch
        found.append(Products(chosen.numpy, _same_bits(chosen, rows, weight)))

    with numpy_alone():
        run_all([0], trial)
    return found[0]


def _seconds(product: Callable[[], None]) -> float:
    begin = time.perf_counter()
    product()
    return time.perf_counter() - begin


def _same_bits(products: Products, rows: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Which heights give the bits of the greatest, in both products and all places of a tile."""
    whole, total = _both(products, rows, weight)
    heights = []
    for height in HEIGHTS:
        starts = range(0, len(rows) - height + 1, height)
        parts = [_both(products, rows[s : s + height].clone(), weight, whole[s:]) for s in starts]
        if all(
            torch.equal(part[0], whole[s : s + height])
            and torch.equal(part[1], total[s : s + height])
            for s, part in zip(starts, parts, strict=True)
        ):
            heights.append(height)
    return tuple(heights)


def _both(
    products: Products, rows: Tensor, weight: Tensor, tile: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    out = rows.new_empty(len(rows), COLUMNS)
    products.logits(rows, weight, out)
    total = torch.zeros_like(rows)
    factor = out if tile is None else tile[: len(rows)].clone()
    products.accumulate(factor, weight, total, torch.empty_like(rows))
    return out, total
