"""Tiles of logits, and the online softmax that they pass through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tinkergate_kernels.arguments import Tiling

_LOWEST_EXPONENT = -100.0
"""Exponents below this count as this: subnormal numbers make exp2 and products ten times slower,
and 2^-100 for each token of any vocabulary is far below float32's resolution of the sum."""


def row_spans(rows: int, tiling: Tiling) -> Iterator[slice]:
    """The rows, cut into those of one tile."""
    for begin in range(0, rows, tiling.rows):
        yield slice(begin, min(begin + tiling.rows, rows))


class Head:
    """The frozen output projection with its low-rank addition, as float32 tiles of logits before
    the temperature."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        scale: float,
        inv_temperature: float,
        tiling: Tiling,
    ) -> None:
        self.weight, self.bias, self.b = weight, bias, b
        self.a = None if a is None else a.float()
        self.inv_temperature = inv_temperature
        self._scale = scale
        self.tiling = tiling
        self._scratch: Tensor | None = None

    def low_rank(self, rows: Tensor) -> Tensor | None:
        """hidden A^T [R, r] of float32 rows [R, D], without the scale."""
        return None if self.a is None else rows @ self.a.T

    def spans(self) -> Iterator[slice]:
        """The vocabulary, cut into the tokens of one tile."""
        vocab = self.weight.shape[0]
        for begin in range(0, vocab, self.tiling.vocab):
            yield slice(begin, min(begin + self.tiling.vocab, vocab))

    def tile(self, rows: Tensor, low: Tensor | None, span: slice, keep: bool) -> Tensor:
        """The logits [R, len(span)] of float32 rows and their `low_rank`. Unless it is to be kept,
        it is valid until the next call."""
        shape = (rows.shape[0], span.stop - span.start)
        out = rows.new_empty(shape) if keep else self._reused(rows, shape)
        torch.mm(rows, self.weight[span].float().T, out=out)
        if low is not None and self.b is not None:
            out.addmm_(low, self.b[span].float().T, alpha=self._scale)
        if self.bias is not None:
            out.add_(self.bias[span].float())
        return out

    def _reused(self, rows: Tensor, shape: tuple[int, int]) -> Tensor:
        # One buffer for all tiles: fresh memory costs more to touch than to fill.
        size = shape[0] * shape[1]
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = rows.new_empty(size)
        return self._scratch[:size].view(shape)


class OnlineSoftmax:
    """Softmax of N rows over tiles of logits: maximum, sum, and where wanted the means of the rows
    of W and B under the prediction."""

    def __init__(self, count: int, head: Head, *, mean_w: bool, mean_b: bool) -> None:
        width, rank = head.weight.shape[1], 0 if head.b is None else head.b.shape[1]
        zeros = partial(torch.zeros, dtype=torch.float32, device=head.weight.device)
        # The least float rather than -inf: a tile that is all -inf then gives no NaN.
        self.maximum = zeros(count).fill_(torch.finfo(torch.float32).min)
        self.sum = zeros(count)
        self.mean_w = zeros(count, width) if mean_w else None
        self.mean_b = zeros(count, rank) if mean_b else None
        self._head = head

    def add(self, tile: Tensor, rows: slice, span: slice) -> None:
        """Take in a tile of logits, which becomes exp((tile - maximum so far) / temperature)."""
        maximum = torch.maximum(self.maximum[rows], tile.amax(dim=1))
        decay = exponentials(self.maximum[rows] - maximum, self._head.inv_temperature)
        self.maximum[rows] = maximum
        exponentials(tile.sub_(maximum[:, None]), self._head.inv_temperature)
        self.sum[rows] = self.sum[rows] * decay + tile.sum(dim=1)
        if self.mean_w is not None:
            mean = self.mean_w[rows].mul_(decay[:, None])
            mean.addmm_(tile, self._head.weight[span].float())
        if self.mean_b is not None and self._head.b is not None:
            mean = self.mean_b[rows].mul_(decay[:, None])
            mean.addmm_(tile, self._head.b[span].float())

    def finish(self, picked: Tensor) -> None:
        """Turn the weighted sums into means, and the picked logits [N, K] into logprobs."""
        # (z - max) - log(sum) rather than z - (max + log(sum)): the large terms cancel first.
        picked.sub_(self.maximum[:, None]).mul_(self._head.inv_temperature)
        picked.sub_(self.sum.log()[:, None])
        for mean in (self.mean_w, self.mean_b):
            if mean is not None:
                mean.div_(self.sum[:, None])


def exponentials(differences: Tensor, inv_temperature: float) -> Tensor:
    """exp(differences / temperature), in place. Differences are of logits and their maximum, so
    that scaling to base 2 rounds small numbers only; exp2 is several times faster than exp."""
    scaled = differences.mul_(inv_temperature / math.log(2))
    return scaled.clamp_(min=_LOWEST_EXPONENT).exp2_()


def pick(tile: Tensor, span: slice, targets: Tensor, picked: Tensor) -> None:
    """Copy the logits of those `targets` [R, K] that lie in the tile into `picked` [R, K]."""
    local = targets - span.start
    inside = (local >= 0) & (local < tile.shape[1])
    found = tile.gather(1, local.clamp(0, tile.shape[1] - 1))
    torch.where(inside, found, picked, out=picked)
