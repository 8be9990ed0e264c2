"""Softmax over the vocabulary from hidden states, a tile of logits at a time.

The work is cut into items, a tile of rows and a part of the vocabulary each. An item goes through
its part in small tiles of logits and keeps a running maximum and sum (online softmax), and where
gradients will be wanted the running mean of the unembedding under the prediction; see
`tinkergate_kernels.linear` for why. The parts' sums are put together in the vocabulary's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinkergate_kernels.cpu.head import LOG2_E, Head, RowFactors, padded, spans_of, splits_of
from tinkergate_kernels.cpu.online import LN_2, Online, Parts, near, powers
from tinkergate_kernels.cpu.products import COLUMNS
from tinkergate_kernels.cpu.workers import numpy_alone, run_all
from tinkergate_kernels.partials import Partials


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
    logsumexp: Tensor
    """[N], nats."""
    maximum: Tensor
    """[N]: the largest logit, before the temperature."""
    total: Tensor
    """[N]: the sum of 2^((logit - maximum) / (T log 2)), of the logits as they were rounded."""
    entropy: Tensor | None = None
    """[N], nats."""
    mean_w: Tensor | None = None
    """[N, D]: the mean of the rows of W under the prediction."""
    mean_b: Tensor | None = None
    """[N, r]: likewise of B."""
    topk_ids: Tensor | None = None
    """[N, k]."""
    topk_logprobs: Tensor | None = None
    """[N, k]."""
    kept: dict[tuple[int, int], KeptTile] = field(default_factory=dict)
    """By the first row and the first token of the tile."""


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
    found = parts_of(
        head, hidden, targets, inverse_temperature, wanted, splits_of(len(head.weight))
    )
    best = _best(head, found[0], hidden, inverse_temperature)
    inside = (targets >= 0) & (targets < len(head.weight))
    return _together(head, *found, best, inverse_temperature, inside)


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
        factors = _factors(head, hidden, inverse_temperature, place)
        local_targets = padded(targets[place], height, -1)
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
                head.accumulate(buffer, span, mean_w, scratch)
            if mean_b is not None and head.lora is not None:
                mean_b.mul_(online.decay[:, None]).addmm_(tile, head.lora.b[span].float())
        parts.take(number, place, online, precisely(factors, online, place, splits[number]))
        for means, mean in ((means_w, mean_w), (means_b, mean_b)):
            if means is not None and mean is not None:
                means[number, place] = mean[: place.stop - place.start]

    def precisely(factors: RowFactors, online: Online, place: slice, split: range) -> Tensor:
        own = targets[place]
        rows, columns = ((own >= split.start) & (own < split.stop)).nonzero(as_tuple=True)
        height = len(factors.rows)
        logits = head.precise(
            factors,
            torch.cat([torch.arange(height), rows]),
            torch.cat([online.leader, own[rows, columns]]),
        )
        inverse = padded(inverse_temperature[place], height, 1)
        return online.precisely(inverse, logits[:height], rows, columns, logits[height:])

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
    picked = (parts.picked * inverse_temperature[:, None]).float()
    for number, tokens in enumerate(splits):
        there = (targets >= tokens.start) & (targets < tokens.stop)
        picked[number].masked_fill_(there & (picked[number] == float("-inf")), least)
    return Partials(
        (parts.maximum * inverse_temperature).clamp_(min=least),
        (parts.total + parts.missing).float(),
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


def _factors(head: Head, hidden: Tensor, inverse_temperature: Tensor, place: slice) -> RowFactors:
    """Those of a tile of rows, filled up."""
    height = head.products.height_for(place.stop - place.start)
    inverse = padded(inverse_temperature[place], height, 1)
    return head.factors(padded(hidden[place], height), inverse)


def _best(
    head: Head, parts: Parts, hidden: Tensor, inverse_temperature: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The likeliest tokens of all parts, [N, k], and their logits, summed in float64; None if
    none were asked for."""
    if not parts.best:
        return None
    best = parts.best[0]
    count, k = best.ids.shape
    rows = torch.arange(count)
    for other in parts.best[1:]:
        best.merge(rows, other.values, other.ids)
    # By id, so that those that turn out equal come in this order.
    ids, order = best.ids.sort(dim=1)
    logits = best.values.gather(1, order).double()

    def item(place: slice) -> None:
        factors = _factors(head, hidden, inverse_temperature, place)
        height = place.stop - place.start
        found = head.precise(
            factors, torch.arange(height).repeat_interleave(k), ids[place].reshape(-1)
        )
        near(found.view(height, k), logits[place], inverse_temperature[place, None])

    with numpy_alone(), head.products.in_force():
        run_all(row_tiles(head, count), item)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    return ids.gather(1, order), logits.gather(1, order)


def _together(
    head: Head,
    parts: Parts,
    means_w: Tensor | None,
    means_b: Tensor | None,
    kept: dict[tuple[int, int], KeptTile],
    best: tuple[Tensor, Tensor] | None,
    inverse_temperature: Tensor,
    inside: Tensor,
) -> Softmax:
    """The parts of the vocabulary, put together in their order. `inside` [N, K] says which targets
    are tokens."""
    count = len(inside)
    found = Softmax(
        logprob=torch.empty(inside.shape),
        logsumexp=torch.empty(count),
        maximum=parts.maximum.amax(dim=0),
        total=torch.empty(count),
        entropy=None if parts.weighted is None else torch.empty(count),
        mean_w=None if means_w is None else means_w[0],
        mean_b=None if means_b is None else means_b[0],
        topk_ids=None if best is None else best[0],
        topk_logprobs=None if best is None else torch.empty(best[1].shape),
        kept=kept,
    )

    def item(place: slice) -> None:
        # Rows are filled up here too: at the end of an array PyTorch has other code for functions
        # such as exp, with other bits.
        height = head.products.height_for(place.stop - place.start)
        own = slice(place.stop - place.start)

        def filled(of_rows: Tensor) -> Tensor:
            return pad(of_rows[:, place], [0, height - own.stop])

        away = filled(parts.maximum - found.maximum)
        rounded = padded(inverse_temperature[place], height, 1)
        inverse = rounded.double()
        distance = away.double() * inverse
        totals = distance.exp() * filled(parts.total + parts.missing)
        log_total = _summed(totals.clone()).log()

        def logprobs(logits: Tensor) -> Tensor:
            # (z - max) - log(total) rather than z - (max + log(total)): the large terms cancel.
            below = (logits - found.maximum[place, None]).mul_(inverse[own, None])
            return below.sub_(log_total[own, None]).clamp_(max=0).float()

        found.logprob[place] = logprobs(parts.picked[:, place].amax(dim=0))
        found.logsumexp[place] = (found.maximum[place] * inverse[own] + log_total[own]).float()
        if found.entropy is not None and parts.weighted is not None:
            weighted = distance.exp() * (filled(parts.weighted) * LN_2) + distance * totals
            found.entropy[place] = (log_total - _summed(weighted) / log_total.exp()).float()[own]
        if found.topk_logprobs is not None and best is not None:
            found.topk_logprobs[place] = logprobs(best[1][place])
        # What goes with the logits as they were rounded.
        shares = powers(away, rounded * LOG2_E).exp2()[:, own]
        total = found.total[place] = _summed(shares * parts.total[:, place])
        for means in (means_w, means_b):
            if means is not None:
                part = means[:, place].mul_(shares[:, :, None])
                _summed(part).div_(total[:, None])

    run_all(row_tiles(head, count), item)
    found.logprob.masked_fill_(~inside, 0.0)
    return found


def _summed(parts: Tensor) -> Tensor:
    """The sum over the first dimension, one after another, in the memory of the first part."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
