"""Forward only: the partials of the softmax over splits of the vocabulary, and their merge.

One program takes a tile of rows through the tokens of one split. It keeps the running maximum of
the logits and, relative to it and in base 2, the sums of exp and of exp times exponent. Programs
that run side by side have the same split and other rows, so they share its part of W in the
second-level cache. Nothing depends on how many rows there are, so a row has the same bits in any
batch.
"""

# Triton's language is not typed.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from tinkergate_kernels.gpu.linear_shapes import (
    LAYOUT,
    Shape,
    aligned,
    matrix_types,
    shipped_shapes,
    tile_constants,
)
from tinkergate_kernels.gpu.linear_tile import (
    LN2,
    LOG2E,
    LOWEST,
    capped,
    exponent,
    logits_tile,
    store_targets,
)
from tinkergate_kernels.gpu.shipped import Bounds, Shipped

NO_KEY = tl.constexpr(-(2**63))


@triton.jit
def _keys(tile, column, vocab_start, COLUMNS: tl.constexpr):
    """int64 keys in the order of (logit, lower id first): the logit's bits above, the id below."""
    bits = (tile + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    ids = vocab_start + column + tl.arange(0, COLUMNS)
    return (ordered << 32) | (0x7FFFFFFF - ids).to(tl.int64)[None, :]


@triton.jit
def split_partials(
    hidden,
    weight,
    low,
    b,
    bias,
    inv_temperature,
    targets,
    maximum,
    total,
    weighted,
    target,
    best,
    N,
    V,
    K,
    split,
    vocab_start,
    width,
    low_width,
    softcap,
    hidden_stride,
    weight_stride,
    low_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    K_BLOCK: tl.constexpr,
    TOP: tl.constexpr,
    EVEN: tl.constexpr,
    LORA: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """maximum, total, weighted [S, N], target [S, N, K], and with TOP the largest TOP logits as
    keys `best` [S, N, TOP], in no order. targets are int32 [N, K], tokens of this part of the
    vocabulary, -1 for any other."""
    pid = tl.program_id(0)
    row_tiles = (N + ROWS - 1) // ROWS
    row = (pid % row_tiles) * ROWS
    part = pid // row_tiles
    begin = part * split
    end = tl.minimum(begin + split, V)
    at = row + tl.arange(0, ROWS)
    alive = at < N
    rows = tl.minimum(at, N - 1).to(tl.int64)
    inverse = tl.load(inv_temperature + rows)
    scale = inverse * LOG2E
    top = tl.full((ROWS,), LOWEST, tl.float32)
    sums = tl.full((ROWS,), 0.0, tl.float32)
    weights = tl.full((ROWS,), 0.0, tl.float32)
    if TOP > 0:
        # All different, so that one at a time is replaced.
        empty = tl.arange(0, TOP)[None, :].to(tl.int64) + NO_KEY
        kept = tl.full((ROWS, TOP), 0, tl.int64) + empty
    out = part.to(tl.int64) * N
    for k in range(K):
        place = tl.load(targets + rows * K + k)
        elsewhere = (place < begin) | (place >= end)
        tl.store(target + (out + rows) * K + k, float("-inf"), mask=alive & elsewhere)
    for column in range(begin, end, COLUMNS):
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
        if SOFTCAP:
            tile = softcap * capped(tile, softcap)
        if column + COLUMNS > end:
            tile = tl.where((columns < end)[None, :], tile, float("-inf"))
        higher = tl.maximum(top, tl.max(tile, axis=1))
        drop = exponent((top - higher) * scale)
        # Exactly 0 for the largest, whatever its size: the difference is taken first.
        power = exponent((tile - higher[:, None]) * scale[:, None])
        share = tl.exp2(power)
        decay = tl.exp2(drop)
        weights = decay * (weights + drop * sums) + tl.sum(share * power, axis=1)
        sums = decay * sums + tl.sum(share, axis=1)
        top = higher
        store_targets(
            tile,
            targets,
            target + out * K,
            inverse,
            rows,
            alive,
            column,
            end,
            K,
            COLUMNS,
            K_BLOCK,
        )
        if TOP > 0:
            keys = _keys(tile, column, vocab_start, COLUMNS)
            keys = tl.where((columns < end)[None, :], keys, NO_KEY)
            largest = tl.max(keys, axis=1)
            least = tl.min(kept, axis=1)
            # Few turns: after the first tiles hardly any token is among the best.
            while tl.max((largest > least).to(tl.int32), axis=0) > 0:
                into = (kept == least[:, None]) & (largest > least)[:, None]
                kept = tl.where(into, largest[:, None], kept)
                keys = tl.where(keys == largest[:, None], NO_KEY, keys)
                largest = tl.max(keys, axis=1)
                least = tl.min(kept, axis=1)
    tl.store(maximum + out + rows, tl.maximum(top * inverse, LOWEST), mask=alive)
    tl.store(total + out + rows, sums, mask=alive)
    tl.store(weighted + out + rows, weights * LN2, mask=alive)
    if TOP > 0:
        slots = tl.arange(0, TOP)
        places = (out + rows)[:, None] * TOP + slots[None, :]
        tl.store(best + places, kept, mask=alive[:, None])


@triton.jit
def merge_splits(
    maximum,
    total,
    weighted,
    target,
    logprob,
    logsumexp,
    entropy,
    N,
    K,
    step,
    splits,
    ROWS: tl.constexpr,
):
    """`tinkergate_kernels.partials.merge`: the splits one after another, first to
    last. step is N x K."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = at < N
    rows = at.to(tl.int64)
    top = tl.full((ROWS,), LOWEST, tl.float32)
    sums = tl.full((ROWS,), 0.0, tl.float32)
    weights = tl.full((ROWS,), 0.0, tl.float32)
    place = rows
    for _ in range(splits):
        m = tl.load(maximum + place, mask=alive, other=LOWEST)
        s = tl.load(total + place, mask=alive, other=0.0)
        w = tl.load(weighted + place, mask=alive, other=0.0)
        higher = tl.maximum(top, m)
        down = exponent((top - higher) * LOG2E)
        up = exponent((m - higher) * LOG2E)
        old = tl.exp2(down)
        new = tl.exp2(up)
        weights = old * (weights + down * LN2 * sums) + new * (w + up * LN2 * s)
        sums = old * sums + new * s
        top = higher
        place += N
    read = (sums != 0) & alive
    logs = tl.log2(tl.where(read, sums, 1.0)) * LN2
    scored = tl.full((ROWS,), 0, tl.int32)
    for k in range(K):
        z = tl.full((ROWS,), float("-inf"), tl.float32)
        place = rows * K + k
        for _ in range(splits):
            found = tl.load(target + place, mask=alive, other=float("-inf"))
            z = tl.maximum(z, found, propagate_nan=tl.PropagateNan.ALL)
            place += step
        known = z != float("-inf")
        # The large terms cancel first.
        value = tl.minimum((z - top) - logs, 0.0, propagate_nan=tl.PropagateNan.ALL)
        value = tl.where(z == LOWEST, float("-inf"), value)
        tl.store(logprob + rows * K + k, tl.where(known, value, 0.0), mask=alive)
        scored = scored | known.to(tl.int32)
    read = read & (scored > 0)
    tl.store(logsumexp + rows, tl.where(read, top + logs, 0.0), mask=alive)
    entropies = logs - weights / tl.where(read, sums, 1.0)
    tl.store(entropy + rows, tl.where(read, entropies, 0.0), mask=alive)


_OUTPUTS = ("inv_temperature", "maximum", "total", "weighted", "target", "bias")
_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    " lora": {"LORA": True},
    " softcap": {"SOFTCAP": True},
    " top 8": {"TOP": 8},
}


def _shipped() -> list[Shipped]:
    found = [
        _configuration(dtype, told, shape, targets, variant)
        for variant in _VARIANTS
        for dtype, told, shape, targets in shipped_shapes(top="TOP" in _VARIANTS[variant])
        # fp16 compiles to the same code as bf16, but for one letter of the products.
        if dtype != "fp16" or not variant
    ]
    sums = ("maximum", "total", "weighted", "target", "logprob", "logsumexp", "entropy")
    merged = Shipped(
        name="linear_merge",
        kernel=merge_splits,
        signature={
            **dict.fromkeys(sums, "*fp32"),
            **dict.fromkeys(("N", "K", "splits"), "i32"),
            "step": "i64",
        },
        constants={"ROWS": 128},
        divisible_by_16=sums,
    )
    return [*found, merged]


def _configuration(
    dtype: str, told: str, shape: Shape, targets: tuple[str, ...], variant: str
) -> Shipped:
    return Shipped(
        name=f"linear_partials{variant} {told}",
        kernel=split_partials,
        signature={
            **matrix_types(dtype, shape),
            **dict.fromkeys(_OUTPUTS, "*fp32"),
            **dict.fromkeys((*LAYOUT, "N", "V", "K", "split", "vocab_start"), "i32"),
            "targets": "*i32",
            "best": "*i64",
            "softcap": "fp32",
        },
        constants=tile_constants(dtype, shape)
        | {"K_BLOCK": 1, "TOP": 0, "SOFTCAP": False}
        | _VARIANTS[variant],
        divisible_by_16=(*aligned(shape), "split", "best", *_OUTPUTS),
        num_warps=shape.warps,
        num_stages=shape.stages,
        targets=targets,
        # Float32 products are exact, without tensor cores.
        bounds=Bounds(dot=dtype != "fp32"),
    )


SHIPPED: tuple[Shipped, ...] = tuple(_shipped())
