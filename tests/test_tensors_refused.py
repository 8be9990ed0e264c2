"""Tensor messages and numpy arrays: what is refused, and in which words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinkergate.tensors import (
    array_from_tensor,
    arrays_from_batched,
    batched_from_arrays,
    floats_from_bytes,
    tensor_from_array,
    token_bytes,
    tokens_from_bytes,
)
from tinkergate.v1 import BatchedTensor, DType, SparseCsr, Tensor

FLOAT32 = DType.DTYPE_FLOAT32
INT32, BFLOAT16 = DType.DTYPE_INT32, DType.DTYPE_BFLOAT16


def refuses(text: str) -> pytest.RaisesExc[ValueError]:
    """A ValueError of exactly this text."""
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


def int64_bytes(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def float32_bytes(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def csr(
    shape: tuple[int, ...], crow: tuple[int, ...], col: tuple[int, ...], *values: float
) -> Tensor:
    sparse = SparseCsr(
        values=float32_bytes(*values),
        crow_indices=int64_bytes(*crow),
        col_indices=int64_bytes(*col),
    )
    return Tensor(sparse_csr=sparse, dtype=FLOAT32, shape=shape)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (
            Tensor(dense=b"\0" * 4),
            "dtype is not given; must be float32, int64, int32 or bfloat16",
        ),
        (
            Tensor(dense=b"\0" * 4, dtype=9),  # type: ignore[arg-type]
            "dtype is unknown (9); must be float32, int64, int32 or bfloat16",
        ),
        (
            Tensor(dense=b"\0" * 6, dtype=FLOAT32),
            "dense has 6 bytes; must be a multiple of the 4 bytes of float32",
        ),
        (
            Tensor(dense=b"\0" * 3, dtype=BFLOAT16),
            "dense has 3 bytes; must be a multiple of the 2 bytes of bfloat16",
        ),
        (
            Tensor(dense=b"\0" * 12, dtype=INT32, shape=[2, 2]),
            "shape is [2, 2], which is 4 elements; dense holds 3",
        ),
        (
            Tensor(dense=b"", dtype=INT32, shape=[-1, 0]),
            "shape is [-1, 0]; no extent may be negative",
        ),
        (
            Tensor(dense=b"\0" * 4, dtype=INT32, shape=[1] * 9),
            "shape has 9 dimensions; at most 8 are allowed",
        ),
        (
            Tensor(dense=b"", dtype=INT32, shape=[0, 1 << 40, 1 << 40]),
            f"shape is {[0, 1 << 40, 1 << 40]}; at most {1 << 48} elements are allowed",
        ),
    ],
)
def test_dense_tensors_that_are_refused(tensor: Tensor, text: str) -> None:
    with refuses(text):
        array_from_tensor(tensor)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (csr((), (0,), ()), "shape is []; a CSR tensor has two dimensions"),
        (csr((2,), (0, 0, 0), ()), "shape is [2]; a CSR tensor has two dimensions"),
        (csr((2, -1), (0, 0, 0), ()), "shape is [2, -1]; no extent may be negative"),
        (csr((100, 11), (0,), ()), "shape is [100, 11]; at most 1000 elements are allowed"),
        (
            csr((0, 1 << 50), (0,), ()),
            f"shape is {[0, 1 << 50]}; at most {1 << 48} elements are allowed",
        ),
        (csr((2, 2), (0, 1), (0,), 1), "crow_indices has 2 entries; must have rows + 1 = 3"),
        (csr((1, 2), (1, 1), (0,), 1), "crow_indices must rise from 0 to the 1 stored values"),
        (csr((1, 2), (0, 2), (0,), 1), "crow_indices must rise from 0 to the 1 stored values"),
        (
            csr((2, 2), (0, 2, 1), (0,), 1),
            "crow_indices must rise from 0 to the 1 stored values",
        ),
        (  # the differences of these overflow to positive numbers
            csr((3, 2), (0, 2**63 - 1, -2, 1), (0,), 1),
            "crow_indices must rise from 0 to the 1 stored values",
        ),
        (csr((1, 2), (0, 1), (0, 1), 1), "col_indices has 2 entries; must have 1"),
        (csr((1, 2), (0, 1), (2,), 1), "col_indices must lie in 0..1"),
        (csr((1, 2), (0, 1), (-1,), 1), "col_indices must lie in 0..1"),
        (
            csr((1, 3), (0, 3), (1, 0, 1), 1, 2, 3),
            "col_indices must not name a column twice in a row",
        ),
    ],
)
def test_csr_tensors_that_are_refused(tensor: Tensor, text: str) -> None:
    with refuses(text):
        array_from_tensor(tensor, max_elements=1000)


def test_csr_bytes_that_are_refused() -> None:
    tensor = csr((1, 2), (0, 1), (0,), 1)
    tensor.sparse_csr.crow_indices += b"\0"
    with refuses("crow_indices has 17 bytes; must be a multiple of the 8 bytes of int64"):
        array_from_tensor(tensor)
    tensor = csr((1, 2), (0, 1), (0,), 1)
    tensor.sparse_csr.values += b"\0"
    with refuses("values has 5 bytes; must be a multiple of the 4 bytes of float32"):
        array_from_tensor(tensor)


@pytest.mark.parametrize(
    ("offsets", "trailing", "text"),
    [
        ((), (), "offsets is empty; must have one entry more than there are datums"),
        ((4, 16), (), "offsets must rise from 0 to the 16 bytes of data"),
        ((0, 12), (), "offsets must rise from 0 to the 16 bytes of data"),
        ((0, 12, 8, 16), (), "offsets must rise from 0 to the 16 bytes of data"),
        (
            (0, 2**63 - 8, -16, 16),
            (),
            "offsets must rise from 0 to the 16 bytes of data",
        ),
        ((0, 6, 16), (), "offsets must be multiples of the 4 bytes of one row"),
        ((0, 4, 16), (2,), "offsets must be multiples of the 8 bytes of one row"),
        ((0, 16), (0,), "trailing_shape is [0]; extents must be positive"),
        ((0, 16), (-2,), "trailing_shape is [-2]; no extent may be negative"),
        ((0, 16), (1,) * 9, "trailing_shape has 9 dimensions; at most 8 are allowed"),
        (
            (0, 16),
            (1 << 40, 1 << 40),
            f"trailing_shape is {[1 << 40, 1 << 40]}; at most {1 << 48} elements are allowed",
        ),
    ],
)
def test_batches_that_are_refused(
    offsets: tuple[int, ...], trailing: tuple[int, ...], text: str
) -> None:
    batched = BatchedTensor(
        data=float32_bytes(1, 2, 3, 4),
        offsets=int64_bytes(*offsets),
        dtype=FLOAT32,
        trailing_shape=trailing,
    )
    with refuses(text):
        arrays_from_batched(batched)


def test_a_batch_without_dtype_is_refused() -> None:
    with refuses("dtype is not given; must be float32, int64, int32 or bfloat16"):
        arrays_from_batched(BatchedTensor(offsets=int64_bytes(0)))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (
            [np.zeros((2, 3)), np.zeros((2, 4))],
            "arrays are float32 ['N', 3] and float32 ['N', 4]; all must have one dtype and the "
            "same extents after the first",
        ),
        (
            [np.zeros(2), np.zeros(2, np.int32)],
            "arrays are float32 ['N'] and int32 ['N']; all must have one dtype and the same "
            "extents after the first",
        ),
        ([np.zeros((2, 0))], "trailing_shape is [0]; extents must be positive"),
    ],
)
def test_arrays_that_do_not_go_together(arrays: list[NDArray[np.generic]], text: str) -> None:
    with refuses(text):
        batched_from_arrays(arrays)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array(["a"]), "dtype is <U1; must be a real number"),
        (np.array([1j]), "dtype is complex128; must be a real number"),
        (np.array([None]), "dtype is object; must be a real number"),
        (np.array([2**63], np.uint64), f"{2**63} does not fit int64"),
        (np.array([1.0, 1e39]), "float64 holds a number that is too large for float32"),
    ],
)
def test_arrays_that_no_tensor_can_hold(array: NDArray[np.generic], text: str) -> None:
    with refuses(text):
        tensor_from_array(array)
    with refuses(text):
        batched_from_arrays([array])


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([1, 2**31], f"token id {2**31} does not fit int32"),
        (np.array([-(2**31) - 1, 5]), f"token id {-(2**31) - 1} does not fit int32"),
        ([1.5], "token ids are float64; must be integers"),
        (np.array([True]), "token ids are bool; must be integers"),
    ],
)
def test_tokens_that_are_refused(tokens: list[int], text: str) -> None:
    with refuses(text):
        token_bytes(tokens)


def test_packed_bytes_that_are_refused() -> None:
    with refuses("tokens has 5 bytes; must be a multiple of the 4 bytes of int32"):
        tokens_from_bytes(b"\0" * 5)
    with refuses("logprobs has 2 bytes; must be a multiple of the 4 bytes of float32"):
        floats_from_bytes(b"\0" * 2)


@settings(max_examples=300)
@given(
    dense=st.binary(max_size=24),
    dtype=st.integers(0, 5),
    shape=st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**62, 2**63 - 1]), max_size=9),
    sparse=st.booleans(),
    rows=st.binary(max_size=24),
    columns=st.binary(max_size=16),
)
def test_whatever_is_sent_is_read_or_refused(
    dense: bytes, dtype: int, shape: list[int], sparse: bool, rows: bytes, columns: bytes
) -> None:
    """No message makes anything but a ValueError."""
    tensor = Tensor(dtype=dtype, shape=shape)  # type: ignore[arg-type]
    if sparse:
        content = SparseCsr(values=dense, crow_indices=rows, col_indices=columns)
        tensor.sparse_csr.CopyFrom(content)
    else:
        tensor.dense = dense
    batched = BatchedTensor(data=dense, offsets=rows, dtype=dtype, trailing_shape=shape)  # type: ignore[arg-type]
    try:
        array = array_from_tensor(tensor, max_elements=1000)
    except ValueError:
        pass
    else:
        assert array.shape == (tuple(shape) or (array.size,))
    try:
        arrays = arrays_from_batched(batched)
    except ValueError:
        pass
    else:
        assert len(arrays) == len(rows) // 8 - 1
