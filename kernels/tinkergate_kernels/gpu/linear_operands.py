"""The fused linear kernels' arguments, as the launchers hand them over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.gpu.linear_product import add_product
from tinkergate_kernels.gpu.linear_shapes import Shape, shape_for

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PROJECTED_ROWS = 4096
"""Rows whose float32 copy is held at once for h A^T."""
_PADDED = 128
"""Whole tiles of any shape."""


@dataclass(frozen=True)
class Operands:
    """hidden [N, D] and weight [V, D] with, if there is a LoRA, low [N, C] and b [V, C] beside
    them: logits = hidden W^T + low b^T + bias. All of hidden's dtype."""

    hidden: Tensor
    weight: Tensor
    low: Tensor | None
    b: Tensor | None
    bias: Tensor | None
    shape: Shape

    def of_rows(self, rows: slice) -> Operands:
        """The same of some rows only."""
        low = None if self.low is None else self.low[rows]
        return replace(self, hidden=self.hidden[rows], low=low)

    def matrices(self) -> tuple[Any, Any, Any, Any]:
        """What a kernel takes for hidden, weight, low and b."""
        rows, columns, depth = self.shape.rows, self.shape.columns, self.shape.depth
        low = self.hidden if self.low is None else self.low
        b = self.weight if self.b is None else self.b
        if not self.shape.descriptors:
            return self.hidden, self.weight, low, b
        from triton.tools.tensor_descriptor import TensorDescriptor

        return (
            TensorDescriptor.from_tensor(self.hidden, [rows, depth]),
            TensorDescriptor.from_tensor(self.weight, [columns, depth]),
            TensorDescriptor.from_tensor(low, [rows, depth]),
            TensorDescriptor.from_tensor(b, [columns, depth]),
        )

    def bias_pointer(self) -> Tensor:
        """The bias, or something in its place that no kernel reads."""
        return self.hidden if self.bias is None else self.bias

    def strides(self) -> tuple[int, int, int, int]:
        """Elements from one row to the next, of hidden, weight, low and b."""
        return (
            self.hidden.stride(0),
            self.weight.stride(0),
            0 if self.low is None else self.low.stride(0),
            0 if self.b is None else self.b.stride(0),
        )

    @property
    def low_width(self) -> int:
        """C; 0 without a LoRA."""
        return 0 if self.low is None else self.low.shape[1]

    def constants(self) -> dict[str, Any]:
        """The constants that every kernel with `logits_tile` takes."""
        return {
            "ROWS": self.shape.rows,
            "COLUMNS": self.shape.columns,
            "DEPTH": self.shape.depth,
            "EVEN": self.hidden.shape[1] % self.shape.depth == 0,
            "LORA": self.low is not None,
            "BIAS": self.bias is not None,
            "DESCRIPTORS": self.shape.descriptors,
            "PRECISION": "ieee" if self.hidden.dtype == torch.float32 else None,
            "num_warps": self.shape.warps,
            "num_stages": self.shape.stages,
        }


def operands(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora: Lora | None,
    *,
    top: bool = False,
) -> Operands:
    """Bring the arguments into the form that the kernels read. Copies only what has to be: hidden
    and weight of different dtypes take the one that holds both, float64 becomes float32."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if dtype not in _DTYPES:
        dtype = torch.float32
    hidden, weight = _readable(hidden.to(dtype)), _readable(weight.to(dtype))
    if lora is None:
        return Operands(hidden, weight, None, None, bias, shape_for(hidden, weight, top=top))
    depth = shape_for(hidden, weight).depth
    low, b = low_rank_columns(projected(hidden, lora), lora.b, hidden.dtype, depth)
    return Operands(hidden, weight, low, b, bias, shape_for(hidden, weight, low, b, top=top))


def projected(hidden: Tensor, lora: Lora) -> Tensor:
    """scale h A^T, float32 [N, r]. By our own product: those of a library depend on how many rows
    there are."""
    count, width = hidden.shape
    a = lora.a.float()
    low = hidden.new_empty((count, a.shape[0]), dtype=torch.float32)
    padded = -(-width // _PADDED) * _PADDED
    block = min(_PROJECTED_ROWS, -(-count // _PADDED) * _PADDED)
    rows = hidden.new_zeros((block, padded), dtype=torch.float32)
    for begin in range(0, count, _PROJECTED_ROWS):
        part = hidden[begin : begin + _PROJECTED_ROWS]
        rows[: len(part), :width] = part
        add_product(low[begin : begin + len(part)], rows, a.T.contiguous(), fresh=True)
    return low.mul_(lora.scale)


def low_rank_columns(
    low: Tensor, b: Tensor, dtype: torch.dtype, depth: int
) -> tuple[Tensor, Tensor]:
    """Columns [N, C] and [V, C] of `dtype` whose product is low b^T to about float32's precision.

    A float32 number is a sum of three bfloat16 or float16 numbers, each the rounding of what the
    ones before it leave. Of the products of such parts those below the third order are left out.
    C is a multiple of `depth`.
    """
    lows, bs = parts_of(low, dtype), parts_of(b, dtype)
    pairs = [(x, y) for i, x in enumerate(lows) for j, y in enumerate(bs) if i + j < 3]
    width = sum(x.shape[1] for x, _ in pairs)
    padded = -(-width // depth) * depth
    return (
        _beside([x for x, _ in pairs], padded, dtype),
        _beside([y for _, y in pairs], padded, dtype),
    )


def parts_of(x: Tensor, dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    """At most `count` tensors of `dtype` whose sum is x, as nearly as they can be."""
    parts = [x.to(dtype)]
    if dtype == torch.float32 or x.dtype == dtype:
        return parts
    rest = x.float()
    for _ in range(count - 1):
        rest = rest - parts[-1].float()
        parts.append(rest.to(dtype))
    return parts


def _beside(parts: list[Tensor], width: int, dtype: torch.dtype) -> Tensor:
    out = parts[0].new_zeros((parts[0].shape[0], width), dtype=dtype)
    begin = 0
    for part in parts:
        out[:, begin : begin + part.shape[1]] = part
        begin += part.shape[1]
    return out


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()
