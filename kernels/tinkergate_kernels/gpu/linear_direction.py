"""The mean of the unembedding under the prediction, in the pass that makes the logprobs.

The vocabulary is taken in chunks. `probability_chunk` stores exp(z - reference) of a chunk, and
`accumulate` multiplies it with the chunk's rows of W. The reference lags: it is a row's target
logit at first, then the largest logit of the chunks before, so that nothing has to wait for the
maximum of the chunk itself. That is exact while no logit exceeds the reference by more than the
dtype can hold, and `advance` notes the rows where one does. The launcher then takes one more pass
with the maximum, which is known by then, as the reference.
"""

# Triton's language is not typed.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from tinkergate_kernels.gpu.linear_shapes import (
    LAYOUT,
    aligned,
    chunk_bounds,
    matrix_types,
    shipped_shapes,
    tile_constants,
)
from tinkergate_kernels.gpu.linear_tile import (
    LN2,
    LOG2E,
    LOWEST,
    exponent,
    logits_tile,
    store_chunk,
    store_targets,
)
from tinkergate_kernels.gpu.shipped import Shipped


@triton.jit
def target_logits(
    hidden,
    weight,
    low,
    b,
    bias,
    targets,
    reference,
    width,
    low_width,
    hidden_stride,
    weight_stride,
    low_stride,
    b_stride,
    K,
    LORA: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """reference [N]: the logit at one of a row's targets, the largest id. Roughly: it only has to
    be near the maximum."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.full((), -1, tl.int32)
    for first in range(0, K, K_BLOCK):
        slots = first + tl.arange(0, K_BLOCK)
        given = tl.load(targets + row * K + slots, mask=slots < K, other=-1)
        token = tl.maximum(token, tl.max(given, axis=0))
    # A row is scored for one target or more; another part of the vocabulary may hold them all.
    place = tl.maximum(token, 0).to(tl.int64)
    inner = tl.arange(0, BLOCK)
    sums = tl.full((BLOCK,), 0.0, tl.float32)
    for begin in range(0, width, BLOCK):
        inside = begin + inner < width
        x = tl.load(hidden + row * hidden_stride + begin + inner, mask=inside, other=0.0)
        y = tl.load(weight + place * weight_stride + begin + inner, mask=inside, other=0.0)
        sums += x.to(tl.float32) * y.to(tl.float32)
    if LORA:
        for begin in range(0, low_width, BLOCK):
            inside = begin + inner < low_width
            x = tl.load(low + row * low_stride + begin + inner, mask=inside, other=0.0)
            y = tl.load(b + place * b_stride + begin + inner, mask=inside, other=0.0)
            sums += x.to(tl.float32) * y.to(tl.float32)
    logit = tl.sum(sums, axis=0)
    if BIAS:
        logit += tl.load(bias + place).to(tl.float32)
    tl.store(reference + row, tl.maximum(logit, LOWEST))


@triton.jit
def probability_chunk(
    hidden,
    weight,
    low,
    b,
    bias,
    inv_temperature,
    targets,
    reference,
    chunk,
    maximum,
    total,
    weighted,
    target,
    N,
    V,
    K,
    begin,
    width,
    low_width,
    hidden_stride,
    weight_stride,
    low_stride,
    b_stride,
    chunk_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    K_BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
    LORA: tl.constexpr,
    BIAS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of the tokens from `begin` on: chunk [rows, chunk_stride], exp((x - reference) / T) in its
    dtype, 0 beyond the vocabulary; and by tile of tokens, maximum [tiles, N] of the logits x, and
    total and weighted, which stand relative to the reference. One program makes one tile."""
    pid = tl.program_id(0)
    row_tiles = (N + ROWS - 1) // ROWS
    row = (pid % row_tiles) * ROWS
    part = pid // row_tiles
    column = begin + part * COLUMNS
    at = row + tl.arange(0, ROWS)
    alive = at < N
    rows = tl.minimum(at, N - 1).to(tl.int64)
    columns = column + tl.arange(0, COLUMNS)
    inverse = tl.load(inv_temperature + rows)
    base = tl.load(reference + rows)
    tile = logits_tile(
        hidden,
        weight,
        low,
        b,
        bias,
        row,
        column,
        rows,
        tl.minimum(columns, V - 1).to(tl.int64),
        width,
        low_width,
        hidden_stride,
        weight_stride,
        low_stride,
        b_stride,
        ROWS,
        COLUMNS,
        DEPTH,
        EVEN,
        LORA,
        BIAS,
        DESCRIPTORS,
        PRECISION,
    )
    if column + COLUMNS > V:
        tile = tl.where((columns < V)[None, :], tile, float("-inf"))
    power = exponent((tile - base[:, None]) * (inverse * LOG2E)[:, None])
    share = tl.exp2(power)
    out = part.to(tl.int64) * N + rows
    tl.store(maximum + out, tl.maximum(tl.max(tile, axis=1), LOWEST), mask=alive)
    tl.store(total + out, tl.sum(share, axis=1), mask=alive)
    tl.store(weighted + out, tl.sum(share * power, axis=1), mask=alive)
    store_chunk(chunk, share, row, column - begin, chunk_stride, ROWS, COLUMNS)
    store_targets(tile, targets, target, inverse, rows, alive, column, V, K, COLUMNS, K_BLOCK)


@triton.jit
def advance(
    maximum,
    total,
    weighted,
    inv_temperature,
    reference_so_far,
    sums,
    weights,
    exceeded,
    decay,
    N,
    tiles,
    limit,
    LAGGED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add a chunk's tiles, first to last, to the sums of those before, all relative to
    `reference_so_far`; then, if LAGGED, make the largest logit so far the reference. exceeded [N]
    becomes 1 where a logit is more than `limit` octaves above its reference. All these change in
    place. decay [N] is what the move multiplies sums by."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = at < N
    rows = at.to(tl.int64)
    base = tl.load(reference_so_far + rows, mask=alive, other=0.0)
    scale = tl.load(inv_temperature + rows, mask=alive, other=1.0) * LOG2E
    s = tl.load(sums + rows, mask=alive, other=0.0)
    w = tl.load(weights + rows, mask=alive, other=0.0)
    beyond = tl.load(exceeded + rows, mask=alive, other=0)
    top = tl.full((ROWS,), LOWEST, tl.float32)
    place = rows
    for _ in range(tiles):
        top = tl.maximum(top, tl.load(maximum + place, mask=alive, other=LOWEST))
        s += tl.load(total + place, mask=alive, other=0.0)
        w += tl.load(weighted + place, mask=alive, other=0.0)
        place += N
    beyond = beyond | ((top - base) * scale > limit).to(tl.int32)
    move = tl.full((ROWS,), 0.0, tl.float32)
    if LAGGED:
        next_base = tl.maximum(base, top)
        move = exponent((base - next_base) * scale)
        base = next_base
    shrink = tl.exp2(move)
    tl.store(reference_so_far + rows, base, mask=alive)
    tl.store(sums + rows, shrink * s, mask=alive)
    tl.store(weights + rows, shrink * (w + move * s), mask=alive)
    tl.store(decay + rows, shrink, mask=alive)
    tl.store(exceeded + rows, beyond, mask=alive)


@triton.jit
def finish(
    reference,
    sums,
    weights,
    inv_temperature,
    target,
    logprob,
    logsumexp,
    entropy,
    N,
    K,
    ROWS: tl.constexpr,
):
    """logprob [N, K] from z at the targets, target [N, K]; logsumexp and entropy [N]."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = at < N
    rows = at.to(tl.int64)
    inverse = tl.load(inv_temperature + rows, mask=alive, other=1.0)
    base = tl.load(reference + rows, mask=alive, other=0.0) * inverse
    s = tl.load(sums + rows, mask=alive, other=1.0)
    w = tl.load(weights + rows, mask=alive, other=0.0)
    logs = tl.log2(s) * LN2
    for k in range(K):
        z = tl.load(target + rows * K + k, mask=alive, other=float("-inf"))
        value = tl.minimum((z - base) - logs, 0.0, propagate_nan=tl.PropagateNan.ALL)
        value = tl.where(z == LOWEST, float("-inf"), value)
        tl.store(logprob + rows * K + k, tl.where(z == float("-inf"), 0.0, value), mask=alive)
    tl.store(logsumexp + rows, base + logs, mask=alive)
    tl.store(entropy + rows, logs - w * LN2 / s, mask=alive)


_FLOATS = ("inv_temperature", "reference", "maximum", "total", "weighted", "target", "bias")


def _shipped() -> list[Shipped]:
    return [
        Shipped(
            name=f"linear_direction{variant} {told}",
            kernel=probability_chunk,
            signature={
                **matrix_types(dtype, shape),
                **dict.fromkeys(_FLOATS, "*fp32"),
                **dict.fromkeys((*LAYOUT, "N", "V", "K", "begin", "chunk_stride"), "i32"),
                "targets": "*i32",
                "chunk": f"*{dtype}",
            },
            constants=tile_constants(dtype, shape) | {"K_BLOCK": 1} | flags,
            divisible_by_16=(*aligned(shape), "begin", "chunk", "chunk_stride", *_FLOATS),
            num_warps=shape.warps,
            num_stages=shape.stages,
            targets=targets,
            bounds=chunk_bounds(dtype, targets),
        )
        for variant, flags in (("", {}), (" lora", {"LORA": True}))
        for dtype, told, shape, targets in shipped_shapes()
        if dtype != "fp16" or not variant
    ]


def _shipped_beside() -> list[Shipped]:
    def floats(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, "*fp32")

    inputs = floats("maximum", "total", "weighted", "inv_temperature")
    state = floats("reference_so_far", "sums", "weights", "decay")
    ends = floats("reference", "target", "logprob", "logsumexp", "entropy")
    matrices = dict.fromkeys(("hidden", "weight", "low", "b"), "*bf16")
    return [
        Shipped(
            name="linear_advance",
            kernel=advance,
            signature={
                **inputs,
                **state,
                "exceeded": "*i32",
                "N": "i32",
                "tiles": "i32",
                "limit": "fp32",
            },
            constants={"LAGGED": True, "ROWS": 128},
            divisible_by_16=(*inputs, *state, "exceeded"),
        ),
        Shipped(
            name="linear_finish",
            kernel=finish,
            signature={
                **ends,
                **floats("sums", "weights", "inv_temperature"),
                "N": "i32",
                "K": "i32",
            },
            constants={"ROWS": 128},
            divisible_by_16=tuple(ends),
        ),
        Shipped(
            name="linear_target_logits bf16",
            kernel=target_logits,
            signature={
                **matrices,
                **floats("bias", "reference"),
                **dict.fromkeys((*LAYOUT, "K"), "i32"),
                "targets": "*i32",
            },
            constants={"LORA": True, "BIAS": False, "BLOCK": 512, "K_BLOCK": 1},
            divisible_by_16=(*matrices, *LAYOUT),
        ),
    ]


SHIPPED: tuple[Shipped, ...] = (*_shipped(), *_shipped_beside())
