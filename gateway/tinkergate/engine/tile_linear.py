"""Linear layers whose products with a tile of rows are quick on a CPU.

A decoding step multiplies few rows with large weights. As `x @ W.T`, the order of
`torch.nn.functional.linear`, float32 libraries take the weight for the matrix whose rows share a
vector register; as `(W @ x.T).T` a register holds the tile's sixteen rows, which takes up to half
the time for the same numbers of products. It also is why a row's sum cannot depend on the rows
beside it: each has a lane of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TILE = 16
"""Rows of a decoding step: one vector register of float32 on the widest CPUs. With fewer rows,
matrix libraries choose the order of their sums by the number of rows; with more, a lone sequence
would pay for ever more dummies."""


class TileLinear(nn.Linear):
    """`nn.Linear`, with the other order of the product for exactly TILE rows in float32 on a CPU
    without gradients. Only the shape decides, so a result never depends on what ran before."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear` does."""
        weight = self.weight
        if (
            torch.is_grad_enabled()
            or input.numel() != TILE * self.in_features
            or weight.device.type != "cpu"
            or weight.dtype != torch.float32
        ):
            return super().forward(input)
        rows = torch.mm(weight, input.reshape(TILE, -1).t()).t().contiguous()
        if self.bias is not None:
            rows += self.bias
        return rows.view(*input.shape[:-1], self.out_features)


def use_tile_linears(network: nn.Module) -> None:
    """Turn every plain linear layer of a frozen network into a `TileLinear`, in place."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = TileLinear
