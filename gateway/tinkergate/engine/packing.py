"""Cutting a batch of uneven sequences into micro-batches without padding, and laying them end to
end."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pack(
    lengths: Sequence[int],
    budget: int,
    *,
    kinds: Sequence[Hashable] | None = None,
    together: int = 1,
) -> list[range]:
    """The examples of each micro-batch, as ranges that follow one another.

    A micro-batch is filled in order until the next example would take it over `budget` tokens; an
    example that is longer goes alone. `kinds` says which examples may share a micro-batch: those
    of equal kind. Every `together` examples in a row, of one kind, are taken for one: 2 keeps pairs
    in one micro-batch. Sorting by length would gain nothing, because sequences are laid end to end.
    """
    batches: list[range] = []
    start = tokens = 0
    for index in range(0, len(lengths), together):
        length = sum(lengths[index : index + together])
        full = tokens + length > budget
        other = kinds is not None and index > start and kinds[index] != kinds[start]
        if index > start and (full or other):
            batches.append(range(start, index))
            start, tokens = index, 0
        tokens += length
    if lengths:
        batches.append(range(start, len(lengths)))
    return batches


def end_to_end(
    arrays: Sequence[NDArray[Any]], dtype: type[np.generic], device: torch.device
) -> Tensor:
    """The arrays of several sequences as one tensor."""
    joined = np.concatenate(arrays, dtype=dtype, casting="same_kind")
    return torch.from_numpy(joined).to(device)
