"""Kernels launched by tests of this room run by Triton's interpreter, on CPU tensors."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest

if sys.platform == "linux":
    # It comes with PyTorch there: without it these tests are to fail, not to be skipped.
    import triton  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Not a setting of the process: the same process compiles kernels ahead of time too."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton_interpreter import interpreted

    with interpreted():
        yield
