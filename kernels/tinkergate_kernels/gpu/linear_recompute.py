"""The gradient in the logits, a chunk of the vocabulary at a time.

For what the mean of the unembedding cannot give: gradients of the unembedding itself and of a
LoRA's B, and every gradient under a softcap. The logits are made again, and with the known
log-sum-exp

    dx[n, v] = (sum_k g[n, k] [v = t[n, k]] - (sum_k g[n, k]) p[n, v]) c'(x[n, v]) / T[n]

where c' is the softcap's derivative. `linear_product` multiplies the chunk with W, h, or the LoRA.
"""

# Triton's language is not typed.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

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
from tinkergate_kernels.gpu.linear_tile import LOG2E, capped, exponent, logits_tile, store_chunk
from tinkergate_kernels.gpu.shipped import Shipped


@triton.jit
def add_targets(
    tile,
    targets,
    upstream,
    rows,
    alive,
    column,
    end,
    K,
    COLUMNS: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """tile + upstream [N, K] at the targets that lie in the tile's tokens [column, end)."""
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
                g = tl.load(upstream + rows * K + k, mask=here, other=0.0)
                match = (place - column)[:, None] == tl.arange(0, COLUMNS)[None, :]
                tile += tl.where(match & here[:, None], g[:, None], 0.0)
    return tile


@triton.jit
def logit_gradients(
    hidden,
    weight,
    low,
    b,
    bias,
    inv_temperature,
    logsumexp,
    targets,
    upstream,
    upstream_sum,
    chunk,
    N,
    V,
    K,
    begin,
    softcap,
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
    SOFTCAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx of the tokens from `begin` on, in the dtype of chunk [rows, chunk_stride]; 0 beyond the
    vocabulary and beyond the rows. One program makes one tile."""
    pid = tl.program_id(0)
    row_tiles = (N + ROWS - 1) // ROWS
    row = (pid % row_tiles) * ROWS
    part = pid // row_tiles
    column = begin + part * COLUMNS
    at = row + tl.arange(0, ROWS)
    alive = at < N
    rows = tl.minimum(at, N - 1).to(tl.int64)
    columns = column + tl.arange(0, COLUMNS)
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
    inverse = tl.load(inv_temperature + rows)
    lse = tl.load(logsumexp + rows)
    all_of_it = tl.load(upstream_sum + rows)
    if SOFTCAP:
        slope = capped(tile, softcap)
        tile = softcap * slope
    share = tl.exp2(exponent((tile * inverse[:, None] - lse[:, None]) * LOG2E))
    gradient = -all_of_it[:, None] * share
    gradient = add_targets(gradient, targets, upstream, rows, alive, column, V, K, COLUMNS, K_BLOCK)
    gradient *= inverse[:, None]
    if SOFTCAP:
        gradient *= 1.0 - slope * slope
    inside = alive[:, None] & (columns < V)[None, :]
    gradient = tl.where(inside, gradient, 0.0)
    store_chunk(chunk, gradient, row, column - begin, chunk_stride, ROWS, COLUMNS)


_FLOATS = ("inv_temperature", "logsumexp", "upstream", "upstream_sum", "bias")
_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    " lora": {"LORA": True},
    " softcap": {"SOFTCAP": True},
}


def _shipped() -> list[Shipped]:
    return [
        Shipped(
            name=f"linear_gradients{variant} {told}",
            kernel=logit_gradients,
            signature={
                **matrix_types(dtype, shape),
                **dict.fromkeys(_FLOATS, "*fp32"),
                **dict.fromkeys((*LAYOUT, "N", "V", "K", "begin", "chunk_stride"), "i32"),
                "targets": "*i32",
                "softcap": "fp32",
                "chunk": f"*{dtype}",
            },
            constants=tile_constants(dtype, shape) | {"K_BLOCK": 1, "SOFTCAP": False} | flags,
            divisible_by_16=(*aligned(shape), "begin", "chunk", "chunk_stride", *_FLOATS),
            num_warps=shape.warps,
            num_stages=shape.stages,
            targets=targets,
            bounds=chunk_bounds(dtype, targets),
        )
        for variant, flags in _VARIANTS.items()
        for dtype, told, shape, targets in shipped_shapes()
        if dtype != "fp16" or not variant
    ]


SHIPPED: tuple[Shipped, ...] = tuple(_shipped())
