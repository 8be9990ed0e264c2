"""The selective log-softmax on a CPU: tiles that stay in the cache, exponentials in base 2, one
thread a core.

Rows go through in tiles of a fixed number, the last one filled up, so that every sum is of one
shape and a row gives the same bits alone as in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tinkergate_kernels.cpu.workers import run_all
from tinkergate_kernels.packed_order import pack, unpack
from tinkergate_kernels.selective_results import Sums

ROWS = 16
COLUMNS = 16384
"""A tile of a MiB stays in a core's cache; with smaller ones the calls cost more than the sums."""
_LOG2E = 1 / math.log(2)
_LOWEST_EXPONENT = -200.0
"""Exponents below count as this, and 2 to this is 0. As a product's factor it is better than
-inf: 0 x -inf is NaN. Nearer to 0, where 2 to it is subnormal, exp2 is ten times slower."""


class _Tile(NamedTuple):
    rows: Tensor
    """[ROWS]: which rows; the last one again where there are no more."""
    real: int
    """How many are different."""
    place: slice | Tensor
    """Those: as a slice where they lie side by side, which needs no copy."""


def forward(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inv_temperature: float | Tensor,
    softcap: float | None,
    entropy: bool,
    topk: int,
) -> Sums:
    """Scores of logits [N, V] at targets [N, K]."""
    vocab = logits.shape[1]
    scored = (targets >= 0) & (targets < vocab)
    sums = Sums(
        logprob=torch.zeros(targets.shape),
        logsumexp=torch.zeros(logits.shape[0]),
        entropy=torch.zeros(logits.shape[0]) if entropy else None,
        maximum=torch.zeros(logits.shape[0]),
        log_total=torch.zeros(logits.shape[0]),
        topk_ids=targets.new_full((logits.shape[0], topk), -1) if topk else None,
        topk_logprobs=torch.zeros(logits.shape[0], topk) if topk else None,
    )

    def score(tile: _Tile) -> None:
        scratch = torch.zeros(2 if entropy else 1, ROWS, min(COLUMNS, vocab))
        inverse = _of_rows(inv_temperature, tile.rows)
        scale = inverse * _LOG2E
        # The least float rather than -inf: a tile that is all -inf then gives no NaN.
        top = torch.full((ROWS, 1), torch.finfo(torch.float32).min)
        total, weighted = torch.zeros(2, ROWS, 1)
        best = targets.new_empty(ROWS, 0)
        for span in _spans(vocab):
            x = _load(logits, tile, span, bias, softcap, scratch[0])
            if topk:
                best = torch.cat([best, pack(x, span.start)], dim=1)
                best = best.topk(min(topk, best.shape[1]), dim=1).values
            higher = torch.maximum(top, x.amax(dim=1, keepdim=True))
            fall = ((top - higher) * scale).clamp_(min=_LOWEST_EXPONENT)
            keep = fall.exp2()
            exponent = x.sub_(higher).mul_(scale)
            if entropy:
                exponent.clamp_(min=_LOWEST_EXPONENT)
            # Over the exponents where they are not needed any more.
            e = torch.exp2(exponent, out=scratch[-1, :, : x.shape[1]])
            if entropy:
                spread = exponent.mul_(e).sum(dim=1, keepdim=True)
                weighted = keep * (weighted + fall * total) + spread
            total = keep * total + e.sum(dim=1, keepdim=True)
            top = higher
        at, rows = slice(tile.real), tile.rows[: tile.real]
        log_total = total.log2()
        sums.maximum[rows] = top[at, 0]
        sums.log_total[rows] = log_total[at, 0]
        sums.logsumexp[rows] = (top * inverse + log_total / _LOG2E)[at, 0]
        if sums.entropy is not None:
            spread = (log_total - weighted / total).clamp_(min=0) / _LOG2E
            sums.entropy[rows] = spread[at, 0]
        columns = targets[tile.rows].clamp(0, vocab - 1)
        picked = logits[tile.rows[:, None], columns].float()
        picked = _bent(picked, None if bias is None else bias[columns], softcap)
        picked = _logprobs(picked, top, inverse, log_total)
        sums.logprob[rows] = torch.where(scored[rows], picked[at], 0.0)
        if sums.topk_ids is not None and sums.topk_logprobs is not None:
            ids, x = unpack(best)
            sums.topk_ids[rows] = ids[at]
            sums.topk_logprobs[rows] = _logprobs(x, top, inverse, log_total)[at]

    run_all(_tiles(scored), score)
    return sums


def backward(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inv_temperature: float | Tensor,
    softcap: float | None,
    statistics: tuple[Tensor, Tensor, Tensor | None],
    upstream: Sequence[Tensor | None],
    out: Tensor,
) -> None:
    """Write the gradient of the logits into `out`, which may be the logits. `statistics` are
    maximum, log_total and entropy; `upstream` the gradients of logprob, logsumexp and entropy."""
    vocab = logits.shape[1]
    scored = (targets >= 0) & (targets < vocab)
    out[~scored.any(dim=1)] = 0
    maximum, log_total, entropy = statistics
    grad_logprob, grad_logsumexp, grad_entropy = upstream

    def pull(tile: _Tile) -> None:
        scratch = torch.zeros(2, ROWS, min(COLUMNS, vocab))
        rows = tile.rows
        inverse = _of_rows(inv_temperature, rows)
        share, slope = torch.zeros(2, ROWS, 1)
        picked = None
        if grad_logprob is not None:
            picked = torch.where(scored[rows], grad_logprob[rows], 0.0)
            share = share - picked.sum(dim=1, keepdim=True)
        if grad_logsumexp is not None:
            share = share + grad_logsumexp[rows, None]
        if grad_entropy is not None and entropy is not None:
            # Of log p in base 2; the constant part goes with the share.
            slope = slope - grad_entropy[rows, None] / _LOG2E
            share = share + slope * (entropy[rows, None] * _LOG2E)
        # The temperature's part in the gradient goes with the numbers of the row.
        share, slope = share * inverse, slope * inverse
        picked = None if picked is None else picked * inverse
        for span in _spans(vocab):
            x = _load(logits, tile, span, bias, None, scratch[0])
            bend = None
            if softcap is not None:
                bend = _slope_of_tanh(x / softcap)
                x = _bent(x, None, softcap)
            log_p = x.sub_(maximum[rows, None]).mul_(inverse * _LOG2E).sub_(log_total[rows, None])
            if grad_entropy is not None:
                log_p.clamp_(min=_LOWEST_EXPONENT)
            p = torch.exp2(log_p, out=scratch[1, :, : x.shape[1]])
            if grad_entropy is not None:
                dz = log_p.mul_(slope).add_(share).mul_(p)
            else:
                dz = p.mul_(share)
            if picked is not None:
                local = targets[rows] - span.start
                here = (local >= 0) & (local < x.shape[1])
                dz.scatter_add_(1, local.clamp(0, x.shape[1] - 1), torch.where(here, picked, 0.0))
            if bend is not None:
                dz.mul_(bend)
            out[tile.place, span] = dz[: tile.real].to(out.dtype)

    run_all(_tiles(scored), pull)


def _tiles(scored: Tensor) -> Iterator[_Tile]:
    """The rows with a target that counts."""
    live = scored.any(dim=1).nonzero().squeeze(1)
    for begin in range(0, live.shape[0], ROWS):
        rows = live[begin : begin + ROWS]
        real, first, last = rows.shape[0], int(rows[0]), int(rows[-1])
        place = slice(first, last + 1) if last - first == real - 1 else rows
        yield _Tile(torch.cat([rows, rows[-1:].expand(ROWS - real)]), real, place)


def _spans(vocab: int) -> Iterator[slice]:
    for begin in range(0, vocab, COLUMNS):
        yield slice(begin, min(begin + COLUMNS, vocab))


def _of_rows(inv_temperature: float | Tensor, rows: Tensor) -> Tensor:
    """[R, 1], float32."""
    if isinstance(inv_temperature, Tensor):
        return inv_temperature[rows, None]
    return torch.full((rows.shape[0], 1), inv_temperature, device=rows.device)


def _load(
    logits: Tensor,
    tile: _Tile,
    span: slice,
    bias: Tensor | None,
    softcap: float | None,
    scratch: Tensor,
) -> Tensor:
    """Float32 logits of a tile after bias and softcap, in the scratch memory. What stands in rows
    that are not real is of no account."""
    x = scratch[:, : span.stop - span.start]
    x[: tile.real].copy_(logits[tile.place, span])
    return _bent(x, None if bias is None else bias[span], softcap)


def _logprobs(x: Tensor, top: Tensor, inverse: Tensor, log_total: Tensor) -> Tensor:
    # (x - max) - log(sum) rather than x - (max + log(sum)): the large terms cancel first.
    return x.sub_(top).mul_(inverse).sub_(log_total / _LOG2E).clamp_(max=0)


def _bent(x: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    if bias is not None:
        x.add_(bias)
    if softcap is not None:
        x.div_(softcap).tanh_().mul_(softcap)
    return x


def _slope_of_tanh(u: Tensor) -> Tensor:
    """1 - tanh(u)^2, without the cancellation."""
    e = u.abs_().mul_(-2 * _LOG2E).clamp_(min=_LOWEST_EXPONENT).exp2_()
    return e / (1 + e).square_() * 4
