"""What a kernel module says of the configurations that it ships, for the ahead-of-time check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Where every kernel must compile: A100, H100, B200 and MI300."""


@dataclass(frozen=True)
class Bounds:
    """What the machine code of one configuration is held to. None means not held to anything."""

    dot: bool = False
    """Tensor-core instructions must be there."""
    wide_loads: bool = True
    """Every global load and store of a full tile must have 128 bits."""
    instructions_per_element: float | None = None
    """Of the main loop, on NVIDIA."""
    special_functions_per_element: float | None = None
    """exp2, log2 and the like, of the main loop, on NVIDIA."""


@dataclass(frozen=True)
class Shipped:
    """One kernel with the constants that it is launched with."""

    name: str
    """Unique, such as "selective_forward bf16"."""
    kernel: Any
    """The `@triton.jit` function."""
    signature: Mapping[str, str]
    """Triton's types by argument: "*bf16", "*fp32", "*i64", "i32", "i64", "fp32",
    "tensordesc<bf16[128,64]>"; none for constants."""
    constants: Mapping[str, Any]
    """The `tl.constexpr` arguments."""
    divisible_by_16: tuple[str, ...] = ()
    """The pointers and strides of which the launcher makes sure that 16 divides them: without it
    Triton's loads are narrow. Triton itself looks at launch."""
    num_warps: int = 4
    num_stages: int = 3
    targets: tuple[str, ...] = TARGETS
    elements_per_loop: int = 0
    """Elements of the largest input that one program takes in one turn of its main loop; 0 if
    there is no loop to count in."""
    bounds: Bounds = field(default_factory=Bounds)
