"""The softmax of a tile of rows over a part of the vocabulary, from one tile of logits to the next.

Logits are compared before the temperature; what is summed are powers of 2 of their differences
from the maximum, times 1 / (T log 2): exp2 is several times faster than exp, and the large terms
cancel before anything is rounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN_2 = math.log(2)

_LEAST = torch.finfo(torch.float32).min

_LEAST_POWER = -1e4
"""Below this 2^x is 0 by far; -inf times 0 would not be."""

_NEAR = 0.01
"""How far, in nats, a logit's rounding may have moved it. Beyond that logits are too large for
float32, and one that is right among those that are not would be worse."""


class Online:
    """Running sums of R rows."""

    def __init__(self, scale: Tensor, targets: int, *, entropy: bool, topk: int) -> None:
        """`scale` is 1 / (T log 2) of each row, [R]. Sums are float32; `picked` is float64."""
        rows = len(scale)
        self._scale = scale
        self.maximum = torch.full((rows,), _LEAST)
        """The least float rather than -inf: a tile that is all -inf then gives no NaN."""
        self.leader = torch.zeros(rows, dtype=torch.int64)
        """The token of the largest logit, [R]."""
        self.total = torch.zeros(rows)
        self.weighted = torch.zeros(rows) if entropy else None
        self.picked = torch.full((rows, targets), float("-inf"), dtype=torch.float64)
        self.decay: Tensor | None = None
        """What earlier sums over the vocabulary are worth now, [R]."""
        self.best = Best(rows, topk) if topk else None
        self._weights: Tensor | None = None

    def add(self, tile: Tensor, span: slice, targets: Tensor) -> None:
        """Take in a tile of logits [R, C]; `targets` is [R, K]. Without entropy the tile becomes
        2^((tile - maximum) scale), and `decay` says what sums that the caller keeps are worth."""
        _pick(tile, span, targets, self.picked)
        highest = tile.amax(dim=1)
        if self.best is not None:
            self.best.add(tile, highest, span.start)
        self._follow(tile, highest, span.start)
        maximum = torch.maximum(self.maximum, highest)
        down = powers(self.maximum - maximum, self._scale)
        decay = self.decay = down.exp2()
        self.maximum = maximum
        tile.sub_(maximum[:, None]).mul_(self._scale[:, None])
        if self.weighted is None:
            tile.exp2_()
            self.total.mul_(decay).add_(tile.sum(dim=1))
            return
        tile.clamp_(min=_LEAST_POWER)
        if self._weights is None or self._weights.shape != tile.shape:
            self._weights = torch.empty_like(tile)
        weights = torch.exp2(tile, out=self._weights)
        # sum 2^(z - new) (z - new), where z - new = (z - old) + (old - new).
        earlier = self.weighted + down * self.total
        self.weighted = decay * earlier + torch.linalg.vecdot(weights, tile)
        self.total.mul_(decay).add_(weights.sum(dim=1))

    def _follow(self, tile: Tensor, highest: Tensor, start: int) -> None:
        """Note the tokens that are likelier than all before."""
        rows = (highest > self.maximum).nonzero().view(-1)
        if len(rows) == len(tile):
            self.leader = tile.argmax(dim=1).add_(start)
        elif len(rows):
            self.leader[rows] = tile[rows].argmax(dim=1).add_(start)

    def precisely(
        self, inverse: Tensor, leaders: Tensor, rows: Tensor, places: Tensor, picked: Tensor
    ) -> Tensor:
        """Take in logits that were summed in float64: those of the `leader` of each row, [R], and
        of targets, [M], at `rows` and `places`. Answers by how much the totals are too small for
        it, float64 [R], which are left as they are. `inverse`: of the temperature, [R].

        A product of float32 sums many numbers, with an error of several roundings of the largest.
        What a log-sum-exp makes of them is their mean under the prediction, in which the likeliest
        token weighs most: with its error most of all is gone. In a target's logprob the error of
        its own logit is the rest."""
        inverse = inverse.double()
        moved = (leaders - self.maximum).mul_(inverse)
        moved = torch.where(moved.abs() <= _NEAR, moved, 0.0)
        if self.weighted is not None:
            # The leader's term, e^0 0, becomes e^moved moved.
            self.weighted += (moved.exp() * moved).div_(LN_2).float()
        self.picked[rows, places] = near(picked, self.picked[rows, places], inverse[rows])
        return moved.expm1()


def near(precise: Tensor, rounded: Tensor, inverse: Tensor) -> Tensor:
    """Put precise logits over rounded ones, float64 both, in place, where rounding alone may have
    moved them. `inverse`: of the temperature."""
    moved = (precise - rounded).mul_(inverse)
    return torch.where(moved.abs() <= _NEAR, precise, rounded, out=rounded)


def powers(differences: Tensor, scale: Tensor) -> Tensor:
    """The powers of 2 that differences of logits stand for, in place; never -inf."""
    return differences.mul_(scale).clamp_(min=_LEAST_POWER)


def _pick(tile: Tensor, span: slice, targets: Tensor, picked: Tensor) -> None:
    """Copy the logits of those `targets` [R, K] that lie in the tile into `picked` [R, K]."""
    local = targets - span.start
    inside = (local >= 0) & (local < tile.shape[1])
    if inside.any():
        found = tile.gather(1, local.clamp_(0, tile.shape[1] - 1)).double()
        torch.where(inside, found, picked, out=picked)


class Best:
    """The k largest logits of each row so far, largest first, equals by lower id."""

    def __init__(self, rows: int, k: int) -> None:
        self.values = torch.full((rows, k), float("-inf"))
        self.ids = torch.full((rows, k), -1)

    def add(self, tile: Tensor, highest: Tensor, start: int) -> None:
        """Take in a tile [R, C] whose rows' maxima are `highest`, of tokens from `start` on."""
        unfilled = self.ids[:, -1] < 0
        # Equal ones that come later have higher ids.
        rows = (unfilled | (highest > self.values[:, -1])).nonzero().view(-1)
        if not len(rows):
            return
        values, places = _likeliest(tile[rows], min(self.values.shape[1], tile.shape[1]))
        self.merge(rows, values, places + start)

    def merge(self, rows: Tensor, values: Tensor, ids: Tensor) -> None:
        """Take in candidates of some rows, sorted, with ids above all those there are."""
        k = self.values.shape[1]
        all_values = torch.cat([self.values[rows], values], dim=1)
        all_ids = torch.cat([self.ids[rows], ids], dim=1)
        # Places that are not filled yet come last, behind tokens of -inf.
        order = torch.where(all_ids < 0, float("-inf"), all_values)
        filled_first = (all_ids < 0).sort(dim=1, stable=True).indices
        order = order.gather(1, filled_first)
        places = filled_first.gather(1, order.sort(dim=1, descending=True, stable=True).indices)
        self.values[rows] = all_values.gather(1, places)[:, :k]
        self.ids[rows] = all_ids.gather(1, places)[:, :k]


def _likeliest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [R, C] and their places, largest first, equals by place."""
    values, places = rows.topk(k, dim=1)
    # Which of equals at the edge were taken, and in what order equals stand, is up to the library.
    torn = ((rows >= values[:, -1:]).sum(dim=1) > k).nonzero().view(-1)
    if len(torn):
        whole_values, whole_places = rows[torn].sort(dim=1, descending=True, stable=True)
        values[torn], places[torn] = whole_values[:, :k], whole_places[:, :k]
    places, order = places.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


class Parts:
    """What each part of the vocabulary said of N rows."""

    def __init__(self, splits: int, rows: int, targets: int, *, entropy: bool, topk: int) -> None:
        self.maximum = torch.empty(splits, rows)
        self.total = torch.empty(splits, rows)
        self.missing = torch.empty(splits, rows, dtype=torch.float64)
        """What the totals are short of, as `Online.precisely` tells."""
        self.weighted = torch.empty(splits, rows) if entropy else None
        self.picked = torch.empty(splits, rows, targets, dtype=torch.float64)
        self.best = [Best(rows, topk) for _ in range(splits)] if topk else []

    def take(self, split: int, place: slice, online: Online, missing: Tensor) -> None:
        """Keep the sums of a tile of rows, without those that fill it up."""
        count = place.stop - place.start
        self.missing[split, place] = missing[:count]
        self.maximum[split, place] = online.maximum[:count]
        self.total[split, place] = online.total[:count]
        self.picked[split, place] = online.picked[:count]
        if self.weighted is not None and online.weighted is not None:
            self.weighted[split, place] = online.weighted[:count]
        if online.best is not None:
            self.best[split].values[place] = online.best.values[:count]
            self.best[split].ids[place] = online.best.ids[:count]
