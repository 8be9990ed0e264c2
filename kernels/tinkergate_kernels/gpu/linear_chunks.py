"""How rows and vocabulary are cut where a chunk of them is held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tinkergate_kernels.gpu.linear_shapes import Shape

CHUNK = 8192
"""Tokens of one chunk. No function of the rows, so that a row's sums are those of any batch."""
CHUNK_BYTES = 256 << 20
"""What a chunk of probabilities or gradients may take."""


@dataclass(frozen=True)
class Chunks:
    """Blocks of rows and chunks of tokens, and the memory in which one of them lies."""

    blocks: tuple[slice, ...]
    spans: tuple[slice, ...]
    memory: Tensor
    """[rows of a block, tokens of a chunk], both whole tiles."""

    def tiles(self, span: slice, shape: Shape) -> int:
        """Tiles of tokens in a chunk."""
        return -(-(span.stop - span.start) // shape.columns)

    def grid(self, rows: int, span: slice, shape: Shape) -> tuple[int]:
        """One program for each tile."""
        return (-(-rows // shape.rows) * self.tiles(span, shape),)


def chunks(
    hidden: Tensor,
    vocab: int,
    shape: Shape,
    chunk: int,
    limit_bytes: int,
    dtype: torch.dtype | None = None,
) -> Chunks:
    """Cut hidden [N, D] against `vocab` tokens, in chunks of `chunk` and as many rows at once as
    take `limit_bytes` in `dtype`, hidden's by default, but at least one tile."""
    dtype = dtype or hidden.dtype
    width = min(chunk, vocab)
    width = -(-width // shape.columns) * shape.columns
    rows = hidden.shape[0]
    fitting = limit_bytes // (width * dtype.itemsize) // shape.rows * shape.rows
    block = max(shape.rows, min(fitting, -(-rows // shape.rows) * shape.rows))
    memory = torch.empty((block, width), dtype=dtype, device=hidden.device)
    return Chunks(tuple(_cut(rows, block)), tuple(_cut(vocab, width)), memory)


def _cut(extent: int, step: int) -> Iterator[slice]:
    for begin in range(0, extent, step):
        yield slice(begin, min(begin + step, extent))
