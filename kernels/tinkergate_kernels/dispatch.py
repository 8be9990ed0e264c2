"""Which way a public function computes: where its tensors lie says so, unless the environment asks
for plain PyTorch."""

from __future__ import annotations

import os
from typing import Literal

import torch

VARIABLE = "TINKERGATE_KERNELS"
"""The environment variable. It is looked at by every call; a backward goes the way of its
forward."""

Way = Literal["cpu", "gpu", "plain"]


def asked() -> Literal["fused", "plain"]:
    """What the environment asks for; fused if nothing. Raises ValueError for anything else."""
    value = os.environ.get(VARIABLE) or "fused"
    if value not in ("fused", "plain"):
        raise ValueError(f"{VARIABLE} is {value!r}; must be fused or plain")
    return "plain" if value == "plain" else "fused"


def way_on(device: torch.device) -> Way:
    """The room that computes for tensors on a device: `plain` where asked for, else `cpu` or
    `gpu`."""
    if asked() == "plain":
        return "plain"
    return "cpu" if device.type == "cpu" else "gpu"
