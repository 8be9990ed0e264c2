"""A tile of logits on the tensor cores: what the fused linear kernels have in common.

A tile is [ROWS, COLUMNS] float32: rows of the hidden states against tokens of the unembedding. A
low-rank addition is more columns of both, [h, s h A^T] against [W, B], so it costs what its width
costs. Rows and tokens beyond the end are read as the last one, not masked: loads stay wide, and
the caller leaves out what they give.
"""

# Triton's language is not typed.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The least float32: the maximum of nothing. Unlike -inf it can be subtracted from itself."""
NEGLIGIBLE = tl.constexpr(-1000.0)
"""An exponent of 2 that gives 0, and times 0 is 0."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def add_product(
    tile,
    left,
    right,
    row,
    column,
    rows,
    columns,
    width,
    left_stride,
    right_stride,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """tile + left[rows] right[columns]^T over `width`. `rows` and `columns` are int64 and safe to
    read; descriptors start at `row` and `column` instead. EVEN: DEPTH divides `width`."""
    if DESCRIPTORS:
        for depth in range(0, width, DEPTH):
            a = left.load([row, depth])
            b = right.load([column, depth])
            tile = tl.dot(a, b.T, tile, input_precision=PRECISION)
    else:
        inner = tl.arange(0, DEPTH)
        a_at = left + rows[:, None] * left_stride + inner[None, :]
        b_at = right + columns[None, :] * right_stride + inner[:, None]
        for depth in range(0, width, DEPTH):
            if EVEN:
                a = tl.load(a_at)
                b = tl.load(b_at)
            else:
                inside = inner < width - depth
                a = tl.load(a_at, mask=inside[None, :], other=0.0)
                b = tl.load(b_at, mask=inside[:, None], other=0.0)
            tile = tl.dot(a, b, tile, input_precision=PRECISION)
            a_at += DEPTH
            b_at += DEPTH
    return tile


@triton.jit
def logits_tile(
    hidden,
    weight,
    low,
    b,
    bias,
    row,
    column,
    rows,
    columns,
    width,
    low_width,
    hidden_stride,
    weight_stride,
    low_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    LORA: tl.constexpr,
    BIAS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """hidden W^T + low B^T + bias, before softcap and temperature."""
    tile = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    tile = add_product(
        tile,
        hidden,
        weight,
        row,
        column,
        rows,
        columns,
        width,
        hidden_stride,
        weight_stride,
        DEPTH,
        EVEN,
        DESCRIPTORS,
        PRECISION,
    )
    if LORA:
        tile = add_product(
            tile,
            low,
            b,
            row,
            column,
            rows,
            columns,
            low_width,
            low_stride,
            b_stride,
            DEPTH,
            True,
            DESCRIPTORS,
            PRECISION,
        )
    if BIAS:
        tile += tl.load(bias + columns)[None, :].to(tl.float32)
    return tile


@triton.jit
def capped(tile, cap):
    """tanh(tile / cap), as (1 - t) / (1 + t) with t = exp(-2 |tile / cap|): nothing overflows."""
    t = tl.exp2(tl.abs(tile) * (-2.0 * LOG2E / cap))
    size = (1.0 - t) / (1.0 + t)
    return tl.where(tile < 0, -size, size)


@triton.jit
def exponent(difference):
    """Not below `NEGLIGIBLE`; what is not a number stays so."""
    return tl.maximum(difference, NEGLIGIBLE, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def store_targets(
    tile,
    targets,
    target,
    inv_temperature,
    rows,
    alive,
    column,
    end,
    K,
    COLUMNS: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """z at the targets that lie in the tile's tokens [column, end), into target [N, K]. A tile that
    holds none, as most do, looks at the targets only."""
    last = tl.minimum(column + COLUMNS, end)
    for first in range(0, K, K_BLOCK):
        slots = first + tl.arange(0, K_BLOCK)
        there = alive[:, None] & (slots < K)[None, :]
        wanted = tl.load(targets + rows[:, None] * K + slots[None, :], mask=there, other=-1)
        hits = ((wanted >= column) & (wanted < last)).to(tl.int32)
        if tl.max(tl.max(hits, axis=1), axis=0) > 0:
            for k in range(first, tl.minimum(first + K_BLOCK, K)):
                place = tl.load(targets + rows * K + k, mask=alive, other=-1)
                here = (place >= column) & (place < last)
                match = (place - column)[:, None] == tl.arange(0, COLUMNS)[None, :]
                z = tl.sum(tl.where(match, tile, 0.0), axis=1) * inv_temperature
                # A logit of -inf is told from a target that lies elsewhere.
                z = tl.maximum(z, LOWEST, propagate_nan=tl.PropagateNan.ALL)
                tl.store(target + rows * K + k, z, mask=here)


@triton.jit
def store_chunk(chunk, tile, row, column, chunk_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile into chunk [rows, chunk_stride], which holds whole tiles, in its dtype."""
    # Only the corner may lie far: offsets in a tile of 64 bits would take all registers.
    corner = chunk + row.to(tl.int64) * chunk_stride + column
    places = tl.arange(0, ROWS)[:, None] * chunk_stride + tl.arange(0, COLUMNS)[None, :]
    tl.store(corner + places, tile.to(chunk.dtype.element_ty))
