"""Top-k beyond what one pass keeps: logits of a chunk in memory, and PyTorch's choice of them."""

# Triton's language is not typed.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.gpu.linear_chunks import CHUNK, CHUNK_BYTES, chunks
from tinkergate_kernels.gpu.linear_operands import Operands, operands
from tinkergate_kernels.gpu.linear_partials import Top, decoded, live_rows, spread_top
from tinkergate_kernels.gpu.linear_shapes import (
    LAYOUT,
    aligned,
    matrix_types,
    shipped_shapes,
    tile_constants,
)
from tinkergate_kernels.gpu.linear_tile import capped, logits_tile, store_chunk
from tinkergate_kernels.gpu.shipped import Bounds, Shipped


@triton.jit
def logits_chunk(
    hidden,
    weight,
    low,
    b,
    bias,
    chunk,
    N,
    V,
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
    EVEN: tl.constexpr,
    LORA: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Logits of the tokens from `begin` on, float32 [rows, chunk_stride]. What lies beyond the
    vocabulary or the rows means nothing."""
    pid = tl.program_id(0)
    row_tiles = (N + ROWS - 1) // ROWS
    row = (pid % row_tiles) * ROWS
    column = begin + pid // row_tiles * COLUMNS
    tile = logits_tile(
        hidden,
        weight,
        low,
        b,
        bias,
        row,
        column,
        tl.minimum(row + tl.arange(0, ROWS), N - 1).to(tl.int64),
        tl.minimum(column + tl.arange(0, COLUMNS), V - 1).to(tl.int64),
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
    store_chunk(chunk, tile, row, column - begin, chunk_stride, ROWS, COLUMNS)


def top_of_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    inv_temperature: Tensor,
    softcap: float | None = None,
    vocab_start: int = 0,
    vocab_total: int | None = None,
    chunk: int = CHUNK,
    chunk_bytes: int = CHUNK_BYTES,
) -> Top:
    """The k largest z of each row, for any k: a pass of its own, with about four times
    `chunk_bytes`, where `partials_and_top` needs neither. Arguments as there."""
    vocab, total = weight.shape[0], targets.shape[0]
    whole = vocab_start + vocab if vocab_total is None else vocab_total
    places = live_rows(targets, whole)
    if places is not None:
        hidden, inv_temperature = (x.index_select(0, places) for x in (hidden, inv_temperature))
    rows = hidden.shape[0]
    best = torch.empty((1, rows, min(k, vocab)), dtype=torch.int64, device=hidden.device)
    if rows:
        given = operands(hidden, weight, bias, lora)
        plan = chunks(given.hidden, vocab, given.shape, chunk, chunk_bytes // 4, torch.float32)
        for block in plan.blocks:
            part = given.of_rows(block)
            kept = best[0, block, :0]
            for span in plan.spans:
                _logits(part, plan.memory, span, softcap)
                filled = plan.memory[: part.hidden.shape[0], : span.stop - span.start]
                keys = torch.cat([kept, _keys(filled, vocab_start + span.start)], dim=1)
                kept = keys.topk(min(k, keys.shape[1]), dim=1).values
            best[0, block] = kept
    found = decoded(best, inv_temperature, k)
    return found if places is None else spread_top(found, places, total)


def _logits(given: Operands, memory: Tensor, span: slice, softcap: float | None) -> None:
    rows, shape = given.hidden.shape[0], given.shape
    tiles = triton.cdiv(rows, shape.rows) * triton.cdiv(span.stop - span.start, shape.columns)
    logits_chunk[(tiles,)](
        *given.matrices(),
        given.bias_pointer(),
        memory,
        rows,
        given.weight.shape[0],
        span.start,
        0.0 if softcap is None else softcap,
        given.hidden.shape[1],
        given.low_width,
        *given.strides(),
        memory.stride(0),
        SOFTCAP=softcap is not None,
        **given.constants(),
    )


def _keys(logits: Tensor, first: int) -> Tensor:
    """int64 keys in the order of (logit, lower id first), as `linear_forward` makes them."""
    bits = (logits + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    ids = torch.arange(first, first + logits.shape[1], device=logits.device)
    return (ordered << 32) | (0x7FFFFFFF - ids)


def _shipped() -> list[Shipped]:
    return [
        Shipped(
            name=f"linear_logits {told}",
            kernel=logits_chunk,
            signature={
                **matrix_types(dtype, shape),
                **dict.fromkeys(("chunk", "bias"), "*fp32"),
                **dict.fromkeys((*LAYOUT, "N", "V", "begin", "chunk_stride"), "i32"),
                "softcap": "fp32",
            },
            constants=tile_constants(dtype, shape) | {"SOFTCAP": False},
            divisible_by_16=(*aligned(shape), "begin", "chunk", "chunk_stride", "bias"),
            num_warps=shape.warps,
            num_stages=shape.stages,
            targets=targets,
            bounds=Bounds(dot=dtype != "fp32"),
        )
        for dtype, told, shape, targets in shipped_shapes()
        if dtype != "fp16"
    ]


SHIPPED: tuple[Shipped, ...] = tuple(_shipped())
