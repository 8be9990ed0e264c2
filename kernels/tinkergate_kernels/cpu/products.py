"""Matrix products of a tile, by whichever library is quickest here.

PyTorch's library (MKL) takes a plain path on processors of other makers than its own, where NumPy's
(OpenBLAS) is up to twice as fast; elsewhere the two are equal. What is quickest is found out once
for a width, by a short trial.

Bfloat16 states and unembeddings are multiplied as such where the processor can: PyTorch's product
of bfloat16 matrices would round each logit to 8 bits, but told that float32 products may take
bfloat16 factors it multiplies these exactly and sums in float32.

A tile's height is one of a few, and short tiles are filled up, because libraries choose how they
sum by the height: a row must get the same bits in a batch of one and of a thousand. Of the heights
those are used that give the same bits, which the trial finds out too: for one height and width the
order of a sum depends on nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinkergate_kernels.cpu.workers import numpy_alone, run_all

COLUMNS = 512
"""Tokens in a tile: its logits stay in a core's own cache. Products that sum over more are cut by
some libraries, and differently for short tiles."""

HEIGHTS = (32, 128, 512)
"""Rows of a tile. The more, the nearer a product comes to the processor's rate."""

_ADVANTAGE = 1.5
"""How much quicker NumPy has to be. Where it is, it is twice as quick, else about the same: between
the two no trial goes one way in one process and the other way in the next, with other bits."""


@dataclass(frozen=True)
class Products:
    """How tiles are multiplied. To be used while `in_force`."""

    numpy: bool
    """By NumPy's library, else PyTorch's."""
    bfloat16: bool
    """With bfloat16 factors and float32 sums."""
    heights: tuple[int, ...]
    """The heights that give the same bits, least first."""

    def height_for(self, rows: int) -> int:
        """The height of the tile that takes so many rows, or as many of them as one can."""
        return next((height for height in self.heights if height >= rows), self.heights[-1])

    def in_force(self) -> AbstractContextManager[None]:
        """Have libraries multiply in this way, in the whole process."""
        return _bfloat16_factors() if self.bfloat16 else nullcontext()

    def logits(self, rows: Tensor, weight: Tensor, out: Tensor) -> None:
        """out = rows @ weight.T: float32 [R, D], any [C, D] and float32 [R, C]."""
        wide = weight.float()
        if self.numpy:
            np.matmul(rows.numpy(), wide.numpy().T, out=out.numpy())
        else:
            torch.mm(rows, wide.t(), out=out)

    def accumulate(self, tile: Tensor, weight: Tensor, total: Tensor, scratch: Tensor) -> None:
        """total += tile @ weight: float32 [R, C], any [C, D] and float32 [R, D]; `scratch` is like
        `total`. With bfloat16 factors the tile and its product are rounded to bfloat16."""
        if self.bfloat16:
            total.add_(torch.mm(tile.bfloat16(), weight))
        elif self.numpy:
            np.matmul(tile.numpy(), weight.float().numpy(), out=scratch.numpy())
            total.add_(scratch)
        else:
            total.addmm_(tile, weight.float())


_choosing = threading.Lock()


def products_for(width: int, dtype: torch.dtype) -> Products:
    """How to multiply states and unembeddings of this width and type here, found out once in a
    process: another trial might choose otherwise, and then the bits are others."""
    with _choosing:
        return _chosen(width, dtype)


@cache
def _chosen(width: int, dtype: torch.dtype) -> Products:
    generator = torch.Generator().manual_seed(0)
    bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    kind = torch.bfloat16 if bfloat16 else torch.float32
    rows = torch.randn(HEIGHTS[-1], width, generator=generator).to(kind).float()
    weight = torch.randn(COLUMNS, width, generator=generator).to(kind)
    found: list[Products] = []

    def trial(_: int) -> None:
        ways = [Products(False, bfloat16, HEIGHTS)]
        if not bfloat16:
            ways.append(Products(True, False, HEIGHTS))
        out = rows.new_empty(len(rows), COLUMNS)
        rounds = [
            [_seconds(partial(way.logits, rows, weight, out)) for way in ways] for _ in range(5)
        ]
        times = [min(each) for each in zip(*rounds, strict=True)]
        chosen = ways[0] if len(ways) == 1 or times[0] <= _ADVANTAGE * times[1] else ways[1]
        found.append(Products(chosen.numpy, bfloat16, _same_bits(chosen, rows, weight)))

    with numpy_alone(), Products(False, bfloat16, HEIGHTS).in_force():
        run_all([0], trial)
    return found[0]


_users = 0
_before = "none"
_counting = threading.Lock()


@contextmanager
def _bfloat16_factors() -> Iterator[None]:
    """Let float32 products take bfloat16 factors. PyTorch has one such setting for all threads, so
    float32 products elsewhere in the process are rounded too while this is in force."""
    global _users, _before
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _counting:
        if not _users:
            _before = settings.fp32_precision
            settings.fp32_precision = "bf16"
        _users += 1
    try:
        yield
    finally:
        with _counting:
            _users -= 1
            if not _users:
                settings.fp32_precision = _before


def _seconds(product: Callable[[], None]) -> float:
    """How long the calling thread itself computes, whatever else the machine is busy with."""
    begin = time.thread_time()
    product()
    return time.thread_time() - begin


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
