"""A matrix product that is added to what is there, in float32, whatever the operands are."""

# Triton's language is not typed.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinkergate_kernels.gpu.linear_shapes import FLOAT, HALF, Shape, shipped_shapes, target_of
from tinkergate_kernels.gpu.shipped import Bounds, Shipped


@triton.jit
def accumulate(
    out,
    left,
    right,
    decay,
    rows,
    columns,
    length,
    out_stride,
    left_stride,
    right_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DECAY: tl.constexpr,
    FRESH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [rows, columns] = decay [rows] out + left right, float32. left is [rows, length], or if
    TRANSPOSED [length, rows]; right is [length, columns]. left must be readable, and 0 in length,
    up to the next multiple of a tile. FRESH: what is in out counts as 0.

    The sum goes on from where out stands, one DEPTH after another, so that it has the same bits
    however its length is divided among calls."""
    pid = tl.program_id(0)
    row_tiles = (rows + ROWS - 1) // ROWS
    row = (pid % row_tiles) * ROWS + tl.arange(0, ROWS)
    column = (pid // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    there = column < columns
    out_at = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    both = (row < rows)[:, None] & there[None, :]
    if FRESH:
        tile = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    else:
        tile = tl.load(out_at, mask=both, other=0.0)
        if DECAY:
            tile *= tl.load(decay + row, mask=row < rows, other=0.0)[:, None]
    for begin in range(0, length, DEPTH):
        # Beyond the end left is 0; there the last row of right is read instead.
        steps = (begin + inner).to(tl.int64)
        safe = tl.minimum(begin + inner, length - 1).to(tl.int64)
        if TRANSPOSED:
            a = tl.trans(tl.load(left + steps[:, None] * left_stride + row[None, :]))
        else:
            a = tl.load(left + row.to(tl.int64)[:, None] * left_stride + steps[None, :])
        b = tl.load(
            right + safe[:, None] * right_stride + column[None, :], mask=there[None, :], other=0.0
        )
        tile = tl.dot(a, b, tile, input_precision=PRECISION)
    tl.store(out_at, tile, mask=both)


def add_product(
    out: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    decay: Tensor | None = None,
    fresh: bool = False,
    transposed: bool = False,
) -> None:
    """out = decay out + left right in place: see `accumulate`. out: float32 [rows, columns].
    left: [at least rows, at least length], or transposed, of right's dtype. decay: [rows]."""
    rows, columns = out.shape
    length = right.shape[0]
    if not rows or not columns:
        return
    shape = _shape(right)
    grid = (triton.cdiv(rows, shape.rows) * triton.cdiv(columns, shape.columns),)
    accumulate[grid](
        out,
        left,
        right,
        out if decay is None else decay,
        rows,
        columns,
        length,
        out.stride(0),
        left.stride(0),
        right.stride(0),
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        DEPTH=shape.depth,
        DECAY=decay is not None,
        FRESH=fresh,
        TRANSPOSED=transposed,
        PRECISION="ieee" if right.dtype == torch.float32 else None,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )


def _shape(right: Tensor) -> Shape:
    return (FLOAT if right.dtype == torch.float32 else HALF)[target_of(right.device)]


_POINTERS = ("out", "decay", "left", "right")
_STRIDES = ("out_stride", "left_stride", "right_stride")
_FORMS: dict[str, dict[str, Any]] = {
    " means": {"DECAY": True, "FRESH": False, "TRANSPOSED": False},
    " transposed": {"DECAY": False, "FRESH": False, "TRANSPOSED": True},
}


def _shipped() -> list[Shipped]:
    return [
        Shipped(
            name=f"linear_product{form} {told}",
            kernel=accumulate,
            signature={
                **dict.fromkeys(("out", "decay"), "*fp32"),
                **dict.fromkeys(("left", "right"), f"*{dtype}"),
                **dict.fromkeys(("rows", "columns", "length", *_STRIDES), "i32"),
            },
            constants={
                "ROWS": shape.rows,
                "COLUMNS": shape.columns,
                "DEPTH": shape.depth,
                "PRECISION": "ieee" if dtype == "fp32" else None,
            }
            | flags,
            divisible_by_16=(*_POINTERS, *_STRIDES, "columns"),
            num_warps=shape.warps,
            num_stages=shape.stages,
            targets=targets,
            bounds=Bounds(dot=dtype != "fp32"),
        )
        for form, flags in _FORMS.items()
        for dtype, told, shape, targets in shipped_shapes()
        if dtype != "fp16"
    ]


SHIPPED: tuple[Shipped, ...] = tuple(_shipped())
