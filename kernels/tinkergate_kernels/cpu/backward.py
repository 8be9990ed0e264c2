"""Gradients for which the probabilities are needed once more: those of the unembedding, of a B that
is added to it, and all of them under a softcap.

For g[n, k] from above, p the prediction, T the temperature, and c' the derivative of the softcap

    d/dlogit[n, v] = c'[n, v] / T[n] (sum_k g[n, k] [v = target[n, k]] - p[n, v] sum_k g[n, k])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinkergate_kernels.cpu.head import Head, RowFactors, padded, spans_of, splits_of
from tinkergate_kernels.cpu.linear import KeptTile, Softmax, row_tiles
from tinkergate_kernels.cpu.online import powers
from tinkergate_kernels.cpu.products import COLUMNS
from tinkergate_kernels.cpu.workers import numpy_alone, run_all


@dataclass(frozen=True)
class Asked:
    """Which gradients are wanted."""

    hidden: bool
    """Of the states, and of those times A^T."""
    weight: bool
    b: bool


@dataclass
class Gradients:
    """Float32; None where not wanted."""

    hidden: Tensor | None = None
    """[N, D]: through W alone."""
    low: Tensor | None = None
    """[N, r], of hidden A^T scale."""
    weight: Tensor | None = None
    """[V, D]."""
    b: Tensor | None = None
    """[V, r]."""


def gradients(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    upstream: Tensor,
    found: Softmax,
    asked: Asked,
) -> Gradients:
    """Gradients of sum(upstream * logprob): `upstream` is float32 [N, K], 0 for targets outside the
    vocabulary; the rest is what `softmax` was given and found."""
    vocab, width = head.weight.shape
    rank = 0 if head.lora is None else head.lora.b.shape[1]
    splits = splits_of(vocab)
    count = len(hidden)
    lora = head.lora is not None
    result = Gradients(
        weight=torch.zeros(vocab, width) if asked.weight else None,
        b=torch.zeros(vocab, rank) if asked.b else None,
    )
    of_hidden = torch.zeros(len(splits), count, width) if asked.hidden else None
    of_low = torch.zeros(len(splits), count, rank) if asked.hidden and lora else None
    log_total = found.total.log2()
    sums = upstream.sum(dim=1)

    def part(number: int) -> None:
        # One thread has a part of the vocabulary to itself, and takes the rows in their order.
        for place in row_tiles(head, count):
            height = head.products.height_for(place.stop - place.start)
            states = padded(hidden[place], height)
            inverse = padded(inverse_temperature[place], height, 1)
            factors = head.factors(states, inverse)
            row = _Row(
                padded(targets[place], height),
                padded(upstream[place], height) * inverse[:, None],
                padded(sums[place], height) * inverse,
                padded(found.maximum[place], height),
                padded(log_total[place], height),
            )
            plain = states.float()
            low = None if head.lora is None else plain @ head.lora.a.float().T * head.lora.scale
            buffer = torch.empty(height * COLUMNS)
            for span in spans_of(splits[number]):
                kept = found.kept.get((place.start, span.start))
                tile = _of_logits(head, factors, row, span, buffer, kept)
                if result.weight is not None:
                    result.weight[span].addmm_(tile.T, plain)
                if result.b is not None and low is not None:
                    result.b[span].addmm_(tile.T, low)
                tile = tile[: place.stop - place.start]
                if of_hidden is not None:
                    of_hidden[number, place].addmm_(tile, head.weight[span].float())
                if of_low is not None and head.lora is not None:
                    of_low[number, place].addmm_(tile, head.lora.b[span].float())

    with numpy_alone():
        run_all(range(len(splits)), part)
    result.hidden = None if of_hidden is None else of_hidden.sum(dim=0)
    result.low = None if of_low is None else of_low.sum(dim=0)
    return result


@dataclass(frozen=True)
class _Row:
    """What the gradients of a tile's logits are made of."""

    targets: Tensor
    """[R, K]."""
    upstream: Tensor
    """[R, K], divided by the temperature."""
    sums: Tensor
    """[R], of `upstream` over K."""
    maximum: Tensor
    """[R]: the largest logit."""
    log_total: Tensor
    """[R]: log2 of the sum of 2^((logit - maximum) scale)."""


def _of_logits(
    head: Head, factors: RowFactors, row: _Row, span: slice, buffer: Tensor, kept: KeptTile | None
) -> Tensor:
    """The gradient of a tile of logits [R, C]."""
    slope = None
    if kept is not None and head.softcap is None:
        rise = powers(kept.maximum - row.maximum, factors.scale)
        share = (rise - row.log_total).exp2_().mul_(row.sums)
        tile = kept.weights * -share[:, None]
    else:
        tile = head.tile(factors, span, buffer)
        if head.softcap is not None:
            slope = 1 - (tile / head.softcap).square_()
        tile.sub_(row.maximum[:, None]).mul_(factors.scale[:, None])
        tile.sub_(row.log_total[:, None]).exp2_()
        tile.mul_(-row.sums[:, None])
    local = row.targets - span.start
    inside = (local >= 0) & (local < tile.shape[1])
    tile.scatter_add_(1, local.clamp_(0, tile.shape[1] - 1), row.upstream * inside)
    return tile if slope is None else tile.mul_(slope)
