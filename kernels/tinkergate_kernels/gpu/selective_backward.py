"""The gradient of logits from those of logprobs, log-sum-exp and entropy, each byte stored once."""

from __future__ import annotations

import triton
import triton.language as tl

from tinkergate_kernels.gpu.selective_forward import LN2, LOG2E, LOWEST_EXPONENT, tanh


@triton.jit
def selective_backward_kernel(
    logits,
    targets,
    bias,
    inv_temperatures,
    maximum,
    log_total,
    entropy,
    grad_logprob,
    grad_logsumexp,
    grad_entropy,
    grad,
    stride,
    grad_stride,
    vocab,
    count,
    inv_temperature,
    softcap,
    inv_softcap,
    TILE: tl.constexpr,
    TARGETS: tl.constexpr,
    ROW_TEMPERATURE: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOGPROB: tl.constexpr,
    LOGSUMEXP: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """With p the prediction, H its entropy, l = log p and g what comes from above,

        dz[v] = sum_k g_lp[k] [v = target k] + p[v] (g_lse - sum_k g_lp[k] - g_H (l[v] + H))

    `grad` may be `logits`: each program reads its tile before it writes it.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1).to(tl.int64) * TILE
    if ROW_TEMPERATURE:
        inv_temperature = tl.load(inv_temperatures + row)

    live = tl.zeros((), tl.int32)
    share = tl.zeros((), tl.float32)
    for first in range(0, count, TARGETS):
        k = first + tl.arange(0, TARGETS)
        target = tl.load(targets + row * count + k, mask=k < count, other=-1)
        scored = (target >= 0) & (target < vocab)
        live |= tl.max(scored.to(tl.int32), 0)
        if LOGPROB:
            upstream = tl.load(grad_logprob + row * count + k, mask=scored, other=0.0)
            share -= tl.sum(upstream, 0)
    if LOGSUMEXP:
        share += tl.load(grad_logsumexp + row)
    slope = tl.zeros((), tl.float32)
    if ENTROPY:
        slope -= tl.load(grad_entropy + row) * LN2
        # Of log p in base 2; the constant part goes with the share.
        share += slope * (tl.load(entropy + row) * LOG2E)

    # The temperature's part in the gradient goes with the numbers of the row.
    share *= inv_temperature
    slope *= inv_temperature
    # Places in the tile, of 32 bits: those in the row would need as many registers as the logits.
    at = tl.arange(0, TILE)
    room = (vocab - start).to(tl.int32)
    tile_logits = logits + row * stride + start
    tile_grad = grad + row * grad_stride + start
    tile_bias = bias + start if BIAS else bias
    top = tl.load(maximum + row)
    log_sum = tl.load(log_total + row)
    # A whole tile is read and written by whole vectors, without masks.
    if (live > 0) & (room >= TILE):
        x = tl.load(tile_logits + at).to(tl.float32)
        if BIAS:
            x += tl.load(tile_bias + at).to(tl.float32)
        dx = _logits_gradient(
            x,
            at,
            start,
            room,
            row,
            targets,
            grad_logprob,
            count,
            top,
            log_sum,
            share,
            slope,
            inv_temperature,
            softcap,
            inv_softcap,
            TILE,
            TARGETS,
            SOFTCAP,
            LOGPROB,
            ENTROPY,
        )
        tl.store(tile_grad + at, dx.to(grad.dtype.element_ty))
    else:
        inside = at < room
        read = inside & (live > 0)
        x = tl.load(tile_logits + at, mask=read, other=0.0).to(tl.float32)
        if BIAS:
            x += tl.load(tile_bias + at, mask=read, other=0.0).to(tl.float32)
        dx = _logits_gradient(
            x,
            at,
            start,
            room,
            row,
            targets,
            grad_logprob,
            count,
            top,
            log_sum,
            share,
            slope,
            inv_temperature,
            softcap,
            inv_softcap,
            TILE,
            TARGETS,
            SOFTCAP,
            LOGPROB,
            ENTROPY,
        )
        tl.store(tile_grad + at, tl.where(read, dx, 0.0).to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _logits_gradient(
    x,
    at,
    start,
    room,
    row,
    targets,
    grad_logprob,
    count,
    top,
    log_sum,
    share,
    slope,
    inv_temperature,
    softcap,
    inv_softcap,
    TILE: tl.constexpr,
    TARGETS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOGPROB: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    if SOFTCAP:
        bent, slope_of_bend = tanh(x * inv_softcap)
        x = softcap * bent
    log_p = (x - top) * (inv_temperature * LOG2E) - log_sum
    if ENTROPY:
        log_p = tl.maximum(log_p, LOWEST_EXPONENT)
    p = tl.exp2(log_p)
    dz = p * (share + slope * log_p) if ENTROPY else p * share
    if LOGPROB:
        for first in range(0, count, TARGETS):
            k = first + tl.arange(0, TARGETS)
            target = tl.load(targets + row * count + k, mask=k < count, other=-1)
            here = (target >= start) & (target < start + tl.minimum(room, TILE))
            if tl.max(here.to(tl.int32), 0) > 0:
                for place in range(first, tl.minimum(first + TARGETS, count)):
                    hit = tl.load(targets + row * count + place) - start
                    upstream = tl.load(grad_logprob + row * count + place) * inv_temperature
                    if (hit >= 0) & (hit < tl.minimum(room, TILE)):
                        dz += tl.where(at == hit.to(tl.int32), upstream, 0.0)
    if SOFTCAP:
        dz *= slope_of_bend
    return dz
