"""Kernels launched by tests of this room run by Triton's interpreter, on CPU tensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Not a setting of the process: the same process compiles kernels ahead of time too."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton_interpreter import interpreted

    with interpreted():
        yield
