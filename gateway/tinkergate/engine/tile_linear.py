"""Linear layers whose products with a tile of rows are quick on a CPU.

A decoding step multiplies few rows with large weights. As `x @ W.T`, the order of
`torch.nn.functional.linear`, float32 libraries take the weight for the matrix whose rows share a
vector register; as `(W @ x.T).T` a register holds the tile's sixteen rows. On AMD processors, where
PyTorch's library (MKL) takes a plain path, that needs up to half the time for the same products; on
Intel's, where it knows tiles of few rows, the usual order does (measured with MKL 2024.2).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

TILE = 16
"""Rows of a decoding step: one vector register of float32 on the widest CPUs. With fewer rows,
matrix libraries choose the order of their sums by the number of rows; with more, a lone sequence
would pay for ever more dummies."""


_CPU_FACTS = Path("/proc/cpuinfo")


def _intel() -> bool:
    return _CPU_FACTS.exists() and "GenuineIntel" in _CPU_FACTS.read_text()


_WEIGHT_FIRST = not _intel()


def tile_product(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows @ weight.T` of (..., in) and (out, in); in the other order, where the processor is
    quicker that way, for exactly TILE rows in float32 on a CPU without gradients. On one machine
    only the shape decides, so a result never depends on what ran before."""
    width = weight.shape[1]
    if (
        not _WEIGHT_FIRST
        or torch.is_grad_enabled()
        or rows.numel() != TILE * width
        or weight.device.type != "cpu"
        or weight.dtype != torch.float32
    ):
        return linear(rows, weight)
    product = torch.mm(weight, rows.reshape(TILE, width).t()).t().contiguous()
    return product.view(*rows.shape[:-1], len(weight))


class TileLinear(nn.Linear):
    """`nn.Linear` by way of `tile_product`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear` does."""
        product = tile_product(input, self.weight)
        return product if self.bias is None else product + self.bias


def use_tile_linears(network: nn.Module) -> None:
    """Turn every plain linear layer of a frozen network into a `TileLinear`, in place."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = TileLinear
