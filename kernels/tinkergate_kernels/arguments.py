"""What the kernels take, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Lora(NamedTuple):
    """A low-rank addition to the unembedding: logits += scale (hidden A^T) B^T."""

    a: Tensor
    """[r, D]."""
    b: Tensor
    """[V, r]."""
    scale: float


@dataclass(frozen=True)
class Tiling:
    """How the work is cut. Changes time and memory, and the result only by rounding."""

    rows: int = 512
    """Rows of `hidden` taken at once."""
    vocab: int = 8192
    """Columns of the logits taken at once. A tile of rows x vocab float32, 16 MiB, stays in a large
    cache; smaller ones are no faster, and make threads wait for each other more often."""
    keep_bytes: int = 128 << 20
    """How many bytes of probabilities the forward may keep for the gradient of B. Rows beyond
    that have their tiles computed again in the backward."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.vocab < 1 or self.keep_bytes < 0:
            raise ValueError(f"{self} is no tiling; rows and vocab must be positive")


def check_linear(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    lora: Lora | None,
    temperature: float,
) -> None:
    """Raise ValueError if the arguments of `linear_logprob` do not fit together. Reads the
    targets, so on a GPU it waits for them."""
    _check_shape("hidden", hidden, (None, None))
    width = hidden.shape[1]
    _check_shape("weight", weight, (None, width))
    vocab = weight.shape[0]
    if vocab == 0:
        raise ValueError("weight has no rows; there must be at least one token")
    floats = {"hidden": hidden, "weight": weight}
    if bias is not None:
        _check_shape("bias", bias, (vocab,))
        floats["bias"] = bias
    if lora is not None:
        _check_shape("lora A", lora.a, (None, width))
        _check_shape("lora B", lora.b, (vocab, lora.a.shape[0]))
        floats |= {"lora A": lora.a, "lora B": lora.b}
        if not math.isfinite(lora.scale):
            raise ValueError(f"lora scale is {lora.scale}; must be finite")
    for name, tensor in floats.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; must be a floating dtype")
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}; hidden is on {hidden.device}")
    for name in ("weight", "bias"):
        if torch.is_grad_enabled() and name in floats and floats[name].requires_grad:
            raise ValueError(f"{name} requires a gradient; this kernel is for a frozen {name}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; must be finite and positive")
    _check_targets(targets, hidden, vocab)


def _check_targets(targets: Tensor, hidden: Tensor, vocab: int) -> None:
    rows = hidden.shape[0]
    if targets.ndim not in (1, 2) or targets.shape[0] != rows:
        raise ValueError(
            f"targets have shape {list(targets.shape)}; must be [{rows}] or [{rows}, K]"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}; must be torch.int64")
    if targets.device != hidden.device:
        raise ValueError(f"targets are on {targets.device}; hidden is on {hidden.device}")
    if targets.numel():
        low, high = (int(bound) for bound in torch.aminmax(targets))
        if low < 0 or high >= vocab:
            wrong = low if low < 0 else high
            raise ValueError(f"targets hold {wrong}; must be at least 0 and below {vocab}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    if tensor.ndim != len(shape) or any(
        wanted is not None and found != wanted
        for found, wanted in zip(tensor.shape, shape, strict=True)
    ):
        told = ", ".join("*" if extent is None else str(extent) for extent in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; must be [{told}]")
