"""How many threads PyTorch computes with.

Every thread that computes has helper threads of its own, and once there are more of those than
processors they stop spinning between two operations and go to sleep, which makes short ones take
half as long again (GNU OpenMP). So only the engine's thread computes with helpers; all others call
`compute_alone` first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_DEFAULT_THREADS = torch.get_num_threads()
"""Read before any thread has changed it: PyTorch hands the last number set on to new threads."""


def _set_for_good(threads: int) -> None:
    # A thread takes on the number that any thread set last when it first computes or asks, even if
    # it has set its own before: so it asks first.
    torch.get_num_threads()
    torch.set_num_threads(threads)


def compute_alone() -> None:
    """Let the calling thread compute without helpers, for good."""
    _set_for_good(1)


def compute_with_helpers(threads: int | None) -> None:
    """Let the calling thread compute with so many threads, for good; None means PyTorch's own
    choice."""
    _set_for_good(threads or _DEFAULT_THREADS)


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
