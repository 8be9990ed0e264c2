"""Logprobs, log-sum-exp, entropy and top-k of rows of logits, each logit read once."""

from __future__ import annotations

import triton
import triton.language as tl

from tinkergate_kernels.gpu.selective_topk import keep_best, none_yet, unpack

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LEAST = tl.constexpr(-3.4028234663852886e38)
# 2 to this is 0 in float32. As a product's factor it is better than -inf: 0 x -inf is NaN.
LOWEST_EXPONENT = tl.constexpr(-200.0)


@triton.jit
def tanh(u):
    """By exp2; by a series where 1 - e would cancel. And its slope, by what does not cancel."""
    e = tl.exp2(tl.abs(u) * (-2 * LOG2E))
    inverse = 1.0 / (1.0 + e)
    far = (1.0 - e) * inverse
    square = u * u
    near = -17 / 315 + square * (62 / 2835)
    near = u + u * square * (-1 / 3 + square * (2 / 15 + square * near))
    bent = tl.where(square < 0.0625, near, tl.where(u < 0.0, -far, far))
    return bent, 4.0 * e * inverse * inverse


@triton.jit
def load_logits(
    row_logits,
    bias,
    at,
    width,
    softcap,
    inv_softcap,
    MASKED: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Float32 logits after bias and softcap, -inf beyond the row's end."""
    inside = at < width
    if MASKED:
        x = tl.load(row_logits + at, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.load(row_logits + at).to(tl.float32)
    if BIAS:
        if MASKED:
            x += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
        else:
            x += tl.load(bias + at).to(tl.float32)
    if SOFTCAP:
        bent, _ = tanh(x * inv_softcap)
        x = softcap * bent
    if MASKED:
        x = tl.where(inside, x, float("-inf"))
    return x


@triton.jit
def _add_tile(x, maximum, total, weighted, scale, ENTROPY: tl.constexpr):
    """Take a tile [U, LANES, VEC] into the sums of each lane, in which nothing is exchanged."""
    top = tl.maximum(maximum, tl.max(tl.max(x, 2), 0))
    exponent = (x - top[None, :, None]) * scale
    fall = tl.maximum((maximum - top) * scale, LOWEST_EXPONENT)
    keep = tl.exp2(fall)
    if ENTROPY:
        exponent = tl.maximum(exponent, LOWEST_EXPONENT)
    e = tl.exp2(exponent)
    if ENTROPY:
        weighted = keep * (weighted + fall * total) + tl.sum(tl.sum(e * exponent, 2), 0)
    total = keep * total + tl.sum(tl.sum(e, 2), 0)
    return top, total, weighted


@triton.jit
def selective_forward_kernel(
    logits,
    targets,
    bias,
    inv_temperatures,
    logprob,
    logsumexp,
    entropy,
    maximum_out,
    log_total_out,
    topk_ids,
    topk_logprobs,
    stride,
    vocab,
    count,
    topk,
    inv_temperature,
    softcap,
    inv_softcap,
    U: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    TARGETS: tl.constexpr,
    ROW_TEMPERATURE: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Scores of one row. Each lane takes the same places of every tile into sums of its own; with
    KEPT, a power of two, the `topk` largest logits are kept beside them."""
    TILE: tl.constexpr = U * LANES * VEC
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * stride
    if ROW_TEMPERATURE:
        inv_temperature = tl.load(inv_temperatures + row)
    scale = inv_temperature * LOG2E

    live = tl.zeros((), tl.int32)
    for first in range(0, count, TARGETS):
        k = first + tl.arange(0, TARGETS)
        target = tl.load(targets + row * count + k, mask=k < count, other=-1)
        live |= tl.max(((target >= 0) & (target < vocab)).to(tl.int32), 0)
    width = tl.where(live > 0, vocab, 0)

    at = (
        tl.arange(0, U)[:, None, None] * (LANES * VEC)
        + tl.arange(0, LANES)[None, :, None] * VEC
        + tl.arange(0, VEC)[None, None, :]
    )
    maximum = tl.full((LANES,), LEAST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    weighted = tl.zeros((LANES,), tl.float32)
    best = none_yet(KEPT if KEPT else 1)
    full = width // TILE * TILE
    for start in range(0, full, TILE):
        x = load_logits(
            row_logits, bias, start + at, width, softcap, inv_softcap, False, BIAS, SOFTCAP
        )
        if KEPT:
            best = keep_best(best, x, start + at, TILE)
        maximum, total, weighted = _add_tile(x, maximum, total, weighted, scale, ENTROPY)
    if full < width:
        x = load_logits(
            row_logits, bias, full + at, width, softcap, inv_softcap, True, BIAS, SOFTCAP
        )
        if KEPT:
            best = keep_best(best, x, full + at, TILE)
        maximum, total, weighted = _add_tile(x, maximum, total, weighted, scale, ENTROPY)

    top = tl.max(maximum, 0)
    fall = tl.maximum((maximum - top) * scale, LOWEST_EXPONENT)
    keep = tl.exp2(fall)
    row_total = tl.sum(keep * total, 0)
    log_total = tl.where(live > 0, tl.log2(row_total), 0.0)
    top = tl.where(live > 0, top, 0.0)
    tl.store(maximum_out + row, top)
    tl.store(log_total_out + row, log_total)
    tl.store(logsumexp + row, top * inv_temperature + log_total * LN2)
    if ENTROPY:
        row_weighted = tl.sum(keep * (weighted + fall * total), 0)
        mean = row_weighted / tl.where(live > 0, row_total, 1.0)
        tl.store(entropy + row, tl.maximum(log_total - mean, 0.0) * LN2)

    for first in range(0, count, TARGETS):
        k = first + tl.arange(0, TARGETS)
        target = tl.load(targets + row * count + k, mask=k < count, other=-1)
        scored = (target >= 0) & (target < vocab)
        x = tl.load(row_logits + target, mask=scored, other=0.0).to(tl.float32)
        if BIAS:
            x += tl.load(bias + target, mask=scored, other=0.0).to(tl.float32)
        if SOFTCAP:
            bent, _ = tanh(x * inv_softcap)
            x = softcap * bent
        picked = tl.minimum((x - top) * inv_temperature - log_total * LN2, 0.0)
        tl.store(logprob + row * count + k, tl.where(scored, picked, 0.0), mask=k < count)

    if KEPT:
        rank = tl.arange(0, KEPT)
        place, x = unpack(tl.sort(best, descending=True))
        picked = tl.minimum((x - top) * inv_temperature - log_total * LN2, 0.0)
        here = row * topk + rank
        tl.store(topk_ids + here, tl.where(live > 0, place, -1), mask=rank < topk)
        tl.store(topk_logprobs + here, tl.where(live > 0, picked, 0.0), mask=rank < topk)
