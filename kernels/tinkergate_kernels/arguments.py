"""What the kernels take, checked before any work."""

from __future__ import annotations

import math
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


def check_linear(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    lora: Lora | None,
    temperature: float | Tensor,
    softcap: float | None,
) -> None:
    """Raise ValueError if the arguments of `linear_logprob` do not fit together."""
    check_shape("hidden", hidden, (None, None))
    width = hidden.shape[1]
    check_shape("weight", weight, (None, width))
    vocab = weight.shape[0]
    if vocab == 0:
        raise ValueError("weight has no rows; there must be at least one token")
    floats = {"hidden": hidden, "weight": weight}
    if bias is not None:
        check_shape("bias", bias, (vocab,))
        floats["bias"] = bias
    if lora is not None:
        check_shape("lora A", lora.a, (None, width))
        check_shape("lora B", lora.b, (vocab, lora.a.shape[0]))
        floats |= {"lora A": lora.a, "lora B": lora.b}
        if not math.isfinite(lora.scale):
            raise ValueError(f"lora scale is {lora.scale}; must be finite")
    for name, tensor in floats.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; must be a floating dtype")
        check_device(name, tensor, hidden.device)
    if hidden.device.type not in ("cpu", "cuda"):
        raise ValueError(f"hidden is on {hidden.device}; must be on a CPU or a GPU (cuda)")
    if bias is not None and torch.is_grad_enabled() and bias.requires_grad:
        raise ValueError("bias requires a gradient; this kernel is for a frozen bias")
    check_temperature(temperature, hidden)
    check_softcap(softcap)
    check_targets(targets, hidden)


def check_temperature(temperature: float | Tensor, rows: Tensor) -> None:
    """One positive number, or one a row: float [N] on the rows' device, whose values are not
    looked at."""
    if isinstance(temperature, Tensor):
        check_shape("temperature", temperature, (rows.shape[0],))
        if not temperature.is_floating_point():
            raise ValueError(f"temperature is {temperature.dtype}; must be a floating dtype")
        check_device("temperature", temperature, rows.device)
    elif not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; must be finite and positive")


def check_softcap(softcap: float | None) -> None:
    """None, or a positive number."""
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap is {softcap}; must be finite and positive")


def check_targets(targets: Tensor, rows: Tensor) -> None:
    """Int64 [N] or [N, K] for the N rows, on their device. Values may be anything: those that are
    no token are ignored."""
    count = rows.shape[0]
    if targets.ndim not in (1, 2) or targets.shape[0] != count:
        raise ValueError(
            f"targets have shape {list(targets.shape)}; must be [{count}] or [{count}, K]"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}; must be torch.int64")
    if targets.device != rows.device:
        raise ValueError(f"targets are on {targets.device}; must be on {rows.device}")


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """All tensors lie together."""
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; must be on {device}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """The tensor's shape is as given, where None is any extent."""
    if tensor.ndim != len(shape) or any(
        wanted is not None and found != wanted
        for found, wanted in zip(tensor.shape, shape, strict=True)
    ):
        told = ", ".join("*" if extent is None else str(extent) for extent in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; must be [{told}]")


def inverse_of(temperature: float | Tensor, rows: Tensor) -> Tensor:
    """1 / temperature for each row, float32 [N]."""
    if isinstance(temperature, Tensor):
        return temperature.detach().float().reciprocal()
    return torch.full((rows.shape[0],), 1 / temperature, device=rows.device)
