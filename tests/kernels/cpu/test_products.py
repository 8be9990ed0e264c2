"""Which library multiplies is chosen once, whoever asks and however busy the machine is."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tinkergate_kernels.cpu import products, workers


def test_threads_that_ask_at_once_get_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    products._chosen.cache_clear()
    trials = 0
    entered = threading.Barrier(4)

    def seconds(product: Any) -> float:
        """Tells each trial something else, as a busy machine might."""
        nonlocal trials
        trials += 1
        product()
        return float(trials)

    monkeypatch.setattr(products, "_seconds", seconds)

    def ask(_: int) -> products.Products:
        entered.wait()
        return products.products_for(48, torch.float32)

    try:
        with ThreadPoolExecutor(4) as pool:
            first, *others = pool.map(ask, range(4))
    finally:
        products._chosen.cache_clear()
    assert all(other is first for other in others)
    assert trials == 10  # five times by each of the two libraries


def test_numpy_computes_alone_until_the_last_has_left() -> None:
    def threads() -> list[int]:
        return [library["num_threads"] for library in workers._blas().info()]

    before = threads()
    first, second = workers.numpy_alone(), workers.numpy_alone()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads() == [1] * len(before)
    second.__exit__(None, None, None)
    assert threads() == before
