"""How many threads PyTorch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
