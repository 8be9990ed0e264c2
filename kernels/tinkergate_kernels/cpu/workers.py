"""One thread a core, each with libraries that compute alone.

Two pools of threads that spin against each other (PyTorch's OpenMP and a BLAS library's) can make
the same work ten times slower. Here the work is cut into items, each item is computed by one thread
from end to end, and no library starts threads of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


def run_all(items: Iterable[T], work: Callable[[T], None]) -> None:
    """Call `work` with every item, on as many threads as the calling thread lets PyTorch use: if
    that is one, on the calling thread. The first error is raised when all threads have stopped."""
    count = torch.get_num_threads()
    if count == 1:
        with torch.inference_mode(), _without_subnormals():
            for item in items:
                work(item)
        return
    remaining = iter(items)
    lock = threading.Lock()

    def worker() -> None:
        with torch.inference_mode():
            while True:
                with lock:
                    item = next(remaining, None)
                if item is None:
                    return
                work(item)

    pool = _pool(count, os.getpid())
    futures = [pool.submit(worker) for _ in range(count)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]


@cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """The threads, made once; a forked process has none of its parent's."""
    del process  # part of the key
    pool = ThreadPoolExecutor(count, thread_name_prefix="kernels", initializer=_alone)
    # A pool starts its threads as they are needed: all of them now, so that none begins later.
    barrier = threading.Barrier(count)
    threads = torch.get_num_threads()
    list(pool.map(lambda _: barrier.wait(), range(count)))
    # PyTorch hands the number that was set last on to threads that are new to it.
    torch.set_num_threads(threads)
    return pool


_SUBNORMAL = torch.tensor(1e-39)


@contextmanager
def _without_subnormals() -> Iterator[None]:
    """Subnormal numbers make products ten times slower, and 2^-126 is nothing beside a sum above
    1: the calling thread takes them for 0."""
    before = not (_SUBNORMAL * 1).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _alone() -> None:
    # A thread takes on the number that any thread set last when it first asks, so it asks first.
    torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as `_without_subnormals`, for good


@cache
def _blas() -> ThreadpoolController:
    """NumPy's library. PyTorch's own is told by `torch.set_num_threads`."""
    return ThreadpoolController().select(internal_api="openblas")


_limits: Any = None
_users = 0
_counting = threading.Lock()


@contextmanager
def numpy_alone() -> Iterator[None]:
    """Let NumPy's products use the calling thread only. Holds for the whole process, as long as
    anybody needs it: several threads may at once."""
    global _limits, _users
    with _counting:
        if not _users:
            _limits = _blas().limit(limits=1)
        _users += 1
    try:
        yield
    finally:
        with _counting:
            _users -= 1
            if not _users:
                _limits.restore_original_limits()
