"""Logits and the ids of their tokens in one integer each, so that sorting settles ties as well."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW_BITS = 0x7FFFFFFF


def pack(x: Tensor, start: int) -> Tensor:
    """int64 [R, C] in the order of float32 x [R, C] of the tokens from `start` on; of equal
    logits the one of the lower id is the larger."""
    bits = (x + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = torch.where(bits < 0, bits ^ _LOW_BITS, bits).long()
    ids = torch.arange(start, start + x.shape[1], device=x.device)
    return (ordered << 32) | (_LOW_BITS - ids)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The ids, int64, and the logits, float32."""
    ordered = (packed >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ _LOW_BITS, ordered)
    return _LOW_BITS - (packed & _LOW_BITS), bits.view(torch.float32)
