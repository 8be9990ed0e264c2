"""The output projection, a tile of logits at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.cpu.products import COLUMNS, Products

LOG2_E = 1 / math.log(2)

_MOST_SPLITS = 4
_LEAST_SPLIT = 8 * COLUMNS
_PAIRS = 128
"""Logits that are made precisely at once, always so many: at the end of an array PyTorch has other
code for functions such as tanh, with other bits."""


def splits_of(vocab: int) -> list[range]:
    """The vocabulary in parts that threads may take. By its size alone: where it is cut decides
    over the last bits of the result."""
    count = min(_MOST_SPLITS, max(1, vocab // _LEAST_SPLIT))
    columns = -(-vocab // (count * COLUMNS)) * COLUMNS
    return [range(begin, min(begin + columns, vocab)) for begin in range(0, vocab, columns)]


def spans_of(split: range) -> Iterator[slice]:
    """The tokens of each tile of a part."""
    for begin in range(split.start, split.stop, COLUMNS):
        yield slice(begin, min(begin + COLUMNS, split.stop))


class Head:
    """What turns states into logits. Tensors are on the CPU and of any floating dtype; tiles are
    float32 and not yet divided by the temperature."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        lora: Lora | None,
        softcap: float | None,
        products: Products,
    ) -> None:
        self.weight, self.bias, self.lora, self.softcap = weight, bias, lora, softcap
        self.products = products

    def factors(self, hidden: Tensor, inverse_temperature: Tensor) -> RowFactors:
        """What a tile of rows is multiplied from: states [R, D], inverse temperatures [R]."""
        rows = hidden.float()
        low = None if self.lora is None else rows @ self.lora.a.float().T * self.lora.scale
        return RowFactors(rows, low, inverse_temperature * LOG2_E)

    def tile(self, factors: RowFactors, span: slice, buffer: Tensor) -> Tensor:
        """Logits [R, len(span)] in the memory of `buffer`, which has R * COLUMNS numbers."""
        whole = buffer.view(-1, COLUMNS)
        self.products.logits(factors.rows, _filled(self.weight[span]), whole)
        if self.lora is not None and factors.low is not None:
            whole.addmm_(factors.low, _filled(self.lora.b[span]).float().T)
        out = whole[:, : span.stop - span.start]
        if self.bias is not None:
            out += self.bias[span].float()
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    def accumulate(self, buffer: Tensor, span: slice, total: Tensor, scratch: Tensor) -> None:
        """total += tile @ weights of the span, [R, D], where the tile is the one in `buffer`, with
        whatever its logits have become; `scratch` is like `total`."""
        whole = buffer.view(-1, COLUMNS)
        whole[:, span.stop - span.start :] = 0
        self.products.accumulate(whole, _filled(self.weight[span]), total, scratch)

    def precise(self, factors: RowFactors, rows: Tensor, tokens: Tensor) -> Tensor:
        """The logits, float64 [M], of pairs of a row of a tile and a token, int64 [M] each: as
        those of `tile`, but summed in float64. The bits of one do not depend on the others."""
        found = []
        for begin in range(0, len(rows), _PAIRS):
            pairs = [padded(each[begin : begin + _PAIRS], _PAIRS) for each in (rows, tokens)]
            found.append(self._precise(factors, *pairs))
        return torch.cat([*found, torch.empty(0, dtype=torch.float64)])[: len(rows)]

    def _precise(self, factors: RowFactors, rows: Tensor, tokens: Tensor) -> Tensor:
        logits = _dots(factors.rows[rows], self.weight[tokens])
        if self.lora is not None and factors.low is not None:
            logits += _dots(factors.low[rows], self.lora.b[tokens])
        if self.bias is not None:
            logits += self.bias[tokens].double()
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


def _filled(rows: Tensor) -> Tensor:
    """What a span of tokens has, [C, ...], filled up to COLUMNS: libraries may choose how they sum
    by this number too, and then `Products.heights` would not hold."""
    return padded(rows, COLUMNS)


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Of the rows of both, float64 [M]."""
    return right.double().mul_(left).sum(dim=1)


@dataclass(frozen=True)
class RowFactors:
    """A tile of rows, ready to be multiplied. Float32."""

    rows: Tensor
    """[R, D]."""
    low: Tensor | None
    """scale * rows @ A^T, [R, r]."""
    scale: Tensor
    """[R]: 1 / (T log 2), which turns differences of logits into powers of 2."""


def padded(tensor: Tensor, height: int, value: float = 0) -> Tensor:
    """The rows of a tensor, and rows of `value` up to `height`."""
    missing = height - len(tensor)
    if not missing:
        return tensor
    padding: Sequence[int] = [0, 0] * (tensor.ndim - 1) + [0, missing]
    return torch.nn.functional.pad(tensor, padding, value=value)
