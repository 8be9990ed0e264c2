"""Which tile each GPU takes. Chosen from the machine code, and never from the number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinkergate_kernels.gpu.shipped import Bounds


@dataclass(frozen=True)
class Shape:
    """The tile of one program, and how it is launched."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False
    """Operands are fetched by tensor descriptors (TMA) rather than by pointers."""


# Pointers and a second product for the LoRA leave registers for a depth of 32.
_POINTERS = Shape(128, 128, 32, warps=8, stages=4)
_DESCRIPTORS = Shape(128, 128, 64, warps=8, stages=3, descriptors=True)
_MI300 = Shape(128, 128, 64, warps=8, stages=2)
# Float32 is multiplied without tensor cores on NVIDIA: exact, and with the whole depth of a step in
# registers, of which a depth of 16 takes more than there are.
_FLOAT32 = Shape(64, 64, 8, warps=4, stages=3)
_MI300_FLOAT32 = Shape(64, 64, 16, warps=4, stages=2)

HALF = {"sm_80": _POINTERS, "sm_90": _DESCRIPTORS, "sm_100": _DESCRIPTORS, "gfx942": _MI300}
"""For bfloat16 and float16."""
FLOAT = {"sm_80": _FLOAT32, "sm_90": _FLOAT32, "sm_100": _FLOAT32, "gfx942": _MI300_FLOAT32}


def target_of(device: torch.device) -> str:
    """Whose shapes a device takes. The interpreter on a CPU takes those of sm_80."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def shape_for(*operands: Tensor, top: bool = False) -> Shape:
    """The shape for a product of these matrices, which have one dtype and are contiguous in their
    last dimension. Those that descriptors cannot reach are read by pointers."""
    first = operands[0]
    target = target_of(first.device)
    shape = (FLOAT if first.dtype == torch.float32 else HALF)[target]
    if shape.descriptors and not all(_reachable(x) for x in operands):
        shape = HALF["sm_80"]
    return _for_top(shape) if top else shape


def _for_top(shape: Shape) -> Shape:
    """Keys take twice the registers of the tile: half as many elements for each thread."""
    return replace(shape, warps=8) if shape.warps < 8 else replace(shape, rows=shape.rows // 2)


def _reachable(x: Tensor) -> bool:
    aligned = x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0
    return aligned and x.numel() > 0


MATRICES = ("hidden", "weight", "low", "b")
"""The arguments of `linear_tile.logits_tile` that are fetched by descriptors or pointers."""
LAYOUT = ("width", "low_width", "hidden_stride", "weight_stride", "low_stride", "b_stride")
"""Its extents, all of which 16 divides in a model's matrices."""


def shipped_shapes(*, top: bool = False) -> Iterator[tuple[str, str, Shape, tuple[str, ...]]]:
    """Triton's dtype, what to call it, a shape and the targets that take it."""
    for dtype, table in (("bf16", HALF), ("fp16", HALF), ("fp32", FLOAT)):
        for shape in dict.fromkeys(table.values()):
            targets = tuple(target for target, taken in table.items() if taken == shape)
            yield dtype, f"{dtype} {targets[0]}", _for_top(shape) if top else shape, targets


def matrix_types(dtype: str, shape: Shape) -> dict[str, str]:
    """Triton's types of `MATRICES`."""
    if not shape.descriptors:
        return dict.fromkeys(MATRICES, f"*{dtype}")
    rows = f"tensordesc<{dtype}[{shape.rows},{shape.depth}]>"
    columns = f"tensordesc<{dtype}[{shape.columns},{shape.depth}]>"
    return {"hidden": rows, "weight": columns, "low": rows, "b": columns}


def tile_constants(dtype: str, shape: Shape) -> dict[str, Any]:
    """The constants of `linear_tile.logits_tile`, for a width that the depth divides."""
    return {
        "ROWS": shape.rows,
        "COLUMNS": shape.columns,
        "DEPTH": shape.depth,
        "EVEN": True,
        "LORA": False,
        "BIAS": False,
        "DESCRIPTORS": shape.descriptors,
        "PRECISION": "ieee" if dtype == "fp32" else None,
    }


def aligned(shape: Shape) -> tuple[str, ...]:
    """The arguments of `linear_tile.logits_tile` that 16 divides."""
    return LAYOUT if shape.descriptors else MATRICES + LAYOUT


def chunk_bounds(dtype: str, targets: tuple[str, ...]) -> Bounds:
    """Of a kernel that stores its tile. Triton for AMD stores it as it lies in the registers of the
    matrix cores, four numbers at once, which are 64 bits of bfloat16; nothing in the source can
    have it otherwise. The loads are those of the kernels that store none."""
    wide = dtype == "fp32" or "gfx942" not in targets
    return Bounds(dot=dtype != "fp32", wide_loads=wide)
