"""How many threads PyTorch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with the calling thread alone: for many small products and sums, of which each takes
    less time than it takes for threads to meet, and far less where other programs keep the
    processors busy. Switching costs less than a microsecond. What is computed stays the same to
    the bit where an operation shares out independent parts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


LITTLE_WORK = 1 << 27
"""Multiplications of tokens and parameters up to which one thread is as fast as several: about a
millisecond of one processor."""


def threads_for(tokens: int, parameters: int) -> AbstractContextManager[None]:
    """All of PyTorch's threads for a pass of so many tokens through a network of so many
    parameters, or one where the work is little. Depends on the work alone, so that the same work
    gives the same numbers."""
    return one_thread() if tokens * parameters <= LITTLE_WORK else nullcontext()
