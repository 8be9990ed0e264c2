"""Softmax over the vocabulary from hidden states, a tile of logits at a time.

The work is cut into items, a tile of rows and a part of the vocabulary each. An item goes through
its part in small tiles of logits and keeps a running maximum and sum (online softmax), and where
gradients will be wanted the running mean of the unembedding under the prediction; see
`tinkergate_kernels.linear` for why. The parts' sums are put together in the vocabulary's order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tinkergate_kernels.cpu.head import LOG2_E, Head, padded, spans_of, splits_of
from tinkergate_kernels.cpu.online import Best, Online, Parts, powers
from tinkergate_kernels.cpu.products import COLUMNS
from tinkergate_kernels.cpu.workers import numpy_alone, run_all
from tinkergate_kernels.partials import Partials

LN_2 = math.log(2)


@dataclass(frozen=True)
class Wanted:
    """What a pass is to find out besides the logprobs."""

    mean_w: bool = False
    mean_b: bool = False
    entropy: bool = False
    topk: int = 0
    keep_bytes: int = 0
    """How many bytes of probabilities to keep for `tinkergate_kernels.cpu.backward`."""


class KeptTile(NamedTuple):
    """Probabilities of a tile, before the sums were known."""

    weights: Tensor
    """[R, C]: 2^((logit - maximum) scale)."""
    maximum: Tensor
    """[R]."""


@dataclass
class Softmax:
    """What a pass over N rows found. Float32."""

    logprob: Tensor
    """[N, K], nats."""
    scale: Tensor
    """[N]: 1 / (T log 2)."""
    maximum: Tensor
    """[N]: the largest logit, before the temperature."""
    total: Tensor
    """[N]: the sum of 2^((logit - maximum) scale)."""
    entropy: Tensor | None = None
    """[N], nats."""
    mean_w: Tensor | None = None
    """[N, D]: the mean of the rows of W under the prediction."""
    mean_b: Tensor | None = None
    """[N, r]: likewise of B."""
    best: Best | None = None
    """The largest logits, before the temperature."""
    kept: dict[tuple[int, int], KeptTile] = field(default_factory=dict)
    """By the first row and the first token of the tile."""

    @property
    def logsumexp(self) -> Tensor:
        """[N], nats."""
        return self.maximum * (self.scale * LN_2) + self.total.log()


def row_tiles(head: Head, rows: int) -> Iterator[slice]:
    """The rows, cut into those of one tile."""
    begin = 0
    while begin < rows:
        end = min(begin + head.products.height_for(rows - begin), rows)
        yield slice(begin, end)
        begin = end


def softmax(
    head: Head, hidden: Tensor, targets: Tensor, inverse_temperature: Tensor, wanted: Wanted
) -> Softmax:
    """One pass over the vocabulary: states [N, D], targets int64 [N, K] inside the vocabulary or
    not, inverse temperatures float32 [N]."""
    splits = splits_of(len(head.weight))
    found = parts_of(head, hidden, targets, inverse_temperature, wanted, splits)
    inside = (targets >= 0) & (targets < len(head.weight))
    return _together(*found, inverse_temperature * LOG2_E, inside)


def parts_of(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    wanted: Wanted,
    splits: Sequence[range],
) -> tuple[Parts, Tensor | None, Tensor | None, dict[tuple[int, int], KeptTile]]:
    """What each part of the vocabulary says: sums, the sums of W and B that belong to them,
    [S, N, D] and [S, N, r], and the kept tiles. Arguments as for `softmax`."""
    vocab, width = head.weight.shape
    count, k = targets.shape
    topk = min(wanted.topk, vocab)
    rank = 0 if head.lora is None else head.lora.b.shape[1]
    parts = Parts(len(splits), count, k, entropy=wanted.entropy, topk=topk)
    means_w = torch.empty(len(splits), count, width) if wanted.mean_w else None
    means_b = torch.empty(len(splits), count, rank) if wanted.mean_b else None
    kept: dict[tuple[int, int], KeptTile] = {}
    places = list(row_tiles(head, count))
    keeping = _that_fit(places, vocab, wanted.keep_bytes)

    def item(which: tuple[slice, int]) -> None:
        place, number = which
        height = head.products.height_for(place.stop - place.start)
        factors = head.factors(
            padded(hidden[place], height), padded(inverse_temperature[place], height, 1)
        )
        local_targets = padded(targets[place], height)
        online = Online(factors.scale, k, entropy=wanted.entropy, topk=topk)
        mean_w = torch.zeros(height, width) if wanted.mean_w else None
        mean_b = torch.zeros(height, rank) if wanted.mean_b else None
        scratch = torch.empty(height, width)
        buffer = torch.empty(height * COLUMNS)
        for span in spans_of(splits[number]):
            if place.start in keeping:
                buffer = torch.empty(height * COLUMNS)
            tile = head.tile(factors, span, buffer)
            online.add(tile, span, local_targets)
            if place.start in keeping:
                kept[place.start, span.start] = KeptTile(tile, online.maximum.clone())
            assert online.decay is not None
            if mean_w is not None:
                mean_w.mul_(online.decay[:, None])
                head.products.accumulate(tile, head.weight[span], mean_w, scratch)
            if mean_b is not None and head.lora is not None:
                mean_b.mul_(online.decay[:, None]).addmm_(tile, head.lora.b[span].float())
        parts.take(number, place, online)
        for means, mean in ((means_w, mean_w), (means_b, mean_b)):
            if means is not None and mean is not None:
                means[number, place] = mean[: place.stop - place.start]

    with numpy_alone(), head.products.in_force():
        run_all([(place, number) for place in places for number in range(len(splits))], item)
    return parts, means_w, means_b, kept


def partials_of(
    head: Head, hidden: Tensor, targets: Tensor, inverse_temperature: Tensor, split: int
) -> Partials:
    """The partials of this part of the vocabulary in splits of `split` tokens; `targets` count
    from its first token. Arguments as for `softmax`."""
    vocab = len(head.weight)
    splits = [range(start, min(start + split, vocab)) for start in range(0, vocab, split)]
    wanted = Wanted(entropy=True)
    parts, *_ = parts_of(head, hidden, targets, inverse_temperature, wanted, splits)
    assert parts.weighted is not None
    least = torch.finfo(torch.float32).min
    picked = parts.picked * inverse_temperature[:, None]
    for number, tokens in enumerate(splits):
        there = (targets >= tokens.start) & (targets < tokens.stop)
        picked[number].masked_fill_(there & (picked[number] == float("-inf")), least)
    return Partials(
        (parts.maximum * inverse_temperature).clamp_(min=least),
        parts.total,
        parts.weighted * LN_2,
        picked,
    )


def _that_fit(places: list[slice], vocab: int, keep_bytes: int) -> set[int]:
    """The first rows of the tiles whose probabilities fit into so many bytes: the first ones."""
    found: set[int] = set()
    for place in places:
        keep_bytes -= 4 * vocab * (place.stop - place.start)
        if keep_bytes < 0:
            break
        found.add(place.start)
    return found


def _together(
    parts: Parts,
    means_w: Tensor | None,
    means_b: Tensor | None,
    kept: dict[tuple[int, int], KeptTile],
    scale: Tensor,
    inside: Tensor,
) -> Softmax:
    """The parts of the vocabulary, put together in their order. `inside` [N, K] says which targets
    are tokens."""
    maximum = parts.maximum.amax(dim=0)
    down = powers(parts.maximum - maximum, scale)
    shares = down.exp2()
    total = _summed(shares * parts.total)
    picked = parts.picked.amax(dim=0)
    log_total = total.log()
    # (z - max) - log(total) rather than z - (max + log(total)): the large terms cancel first.
    logprob = (picked - maximum[:, None]).mul_((scale * LN_2)[:, None])
    logprob.sub_(log_total[:, None]).clamp_(max=0).masked_fill_(~inside, 0.0)
    found = Softmax(logprob, scale, maximum, total, kept=kept)
    if parts.weighted is not None:
        moved = down * parts.total
        found.entropy = log_total - LN_2 * _summed(shares * (parts.weighted + moved)) / total
    if means_w is not None:
        found.mean_w = _summed(means_w.mul_(shares[:, :, None])).div_(total[:, None])
    if means_b is not None:
        found.mean_b = _summed(means_b.mul_(shares[:, :, None])).div_(total[:, None])
    if parts.best:
        found.best = parts.best[0]
        rows = torch.arange(len(maximum))
        for best in parts.best[1:]:
            found.best.merge(rows, best.values, best.ids)
    return found


def _summed(parts: Tensor) -> Tensor:
    """The sum over the first dimension, one after another."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
