"""Tensor messages and numpy arrays: there and back, without copies."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
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

FLOAT32, INT64 = DType.DTYPE_FLOAT32, DType.DTYPE_INT64
INT32, BFLOAT16 = DType.DTYPE_INT32, DType.DTYPE_BFLOAT16

KEPT = st.sampled_from([np.dtype("<f4"), np.dtype("<i8"), np.dtype("<i4")])
"""The dtypes that are written as they are."""

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


def int64_bytes(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def float32_bytes(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def viewed_bytes(array: NDArray[np.generic]) -> bytes:
    """The bytes object that an array is a view of."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, bytes)
    return owner


# Dense


@given(hnp.arrays(KEPT, SHAPES))
def test_an_array_comes_back_as_it_went(array: NDArray[np.generic]) -> None:
    """Bit for bit: NaNs, infinities and negative zeros included."""
    back = array_from_tensor(Tensor.FromString(tensor_from_array(array).SerializeToString()))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(KEPT, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5)))
def test_the_order_in_memory_does_not_matter(array: NDArray[np.generic]) -> None:
    for view in (array.T, array[::-1], np.asfortranarray(array)):
        np.testing.assert_array_equal(array_from_tensor(tensor_from_array(view)), view)


@pytest.mark.parametrize(
    ("written", "read", "label"),
    [
        (np.float64, np.float32, FLOAT32),
        (np.float16, np.float32, FLOAT32),
        (">f4", np.float32, FLOAT32),
        (">i8", np.int64, INT64),
        (np.uint64, np.int64, INT64),
        (np.int8, np.int64, INT64),
        (np.bool_, np.int64, INT64),
    ],
)
def test_other_numbers_are_widened_or_rounded(written: str, read: type, label: int) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(written)
    tensor = tensor_from_array(array)
    assert tensor.dtype == label
    back = array_from_tensor(tensor)
    assert back.dtype == read
    np.testing.assert_array_equal(back, [[0, 1], [1, 0]])


def test_float64_is_rounded_to_the_nearest_and_keeps_what_is_not_finite() -> None:
    array = np.array([1 / 3, -0.0, np.nan, np.inf, -np.inf, 1e-300])
    back = array_from_tensor(tensor_from_array(array))
    np.testing.assert_array_equal(back, array.astype(np.float32))
    assert np.signbit(back[1])


def test_a_scalar_becomes_one_element() -> None:
    tensor = tensor_from_array(np.array(2.5, np.float32))
    assert list(tensor.shape) == [1]
    np.testing.assert_array_equal(array_from_tensor(tensor), [2.5])


def test_no_shape_means_one_dimension() -> None:
    tensor = Tensor(dense=float32_bytes(1, 2, 3), dtype=FLOAT32)
    assert array_from_tensor(tensor).shape == (3,)
    assert array_from_tensor(Tensor(dense=b"", dtype=INT64)).shape == (0,)


def test_nothing_stored_is_an_empty_array() -> None:
    assert array_from_tensor(Tensor(dtype=INT32, shape=[0, 7])).shape == (0, 7)


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=6)))
def test_bfloat16_is_the_upper_half_of_a_float32(bits: NDArray[np.uint16]) -> None:
    tensor = Tensor(dense=bits.astype("<u2").tobytes(), dtype=BFLOAT16, shape=bits.shape)
    array = array_from_tensor(tensor)
    assert array.dtype == np.float32
    assert array.shape == bits.shape
    np.testing.assert_array_equal(array.view(np.uint32), bits.astype(np.uint32) << 16)


def test_bfloat16_values() -> None:
    data = bytes.fromhex("803f 00c0 807f c07f 0080".replace(" ", ""))
    array = array_from_tensor(Tensor(dense=data, dtype=BFLOAT16))
    np.testing.assert_array_equal(array, np.array([1, -2, np.inf, np.nan, 0], np.float32))
    assert np.signbit(array[4])


@pytest.mark.parametrize("dtype", ["<f4", "<i8", "<i4"])
def test_reading_copies_nothing(dtype: str) -> None:
    tensor = tensor_from_array(np.arange(6).astype(dtype).reshape(2, 3))
    array = array_from_tensor(tensor)
    buffer = viewed_bytes(array)
    assert buffer == tensor.dense
    assert np.shares_memory(array, np.frombuffer(buffer, np.uint8))
    assert not array.flags.writeable


# CSR


@given(
    hnp.arrays(
        KEPT,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6),
        elements=st.integers(0, 3),
    ),
    st.integers(-1, 3),
    st.randoms(use_true_random=False),
)
def test_csr_fills_out_to_the_array(array: NDArray[np.generic], fill: int, random: Random) -> None:
    """Rows stored in any order of columns; what equals `fill` is left out."""
    columns: list[int] = []
    bounds = [0]
    for row in array:
        stored = [int(column) for column in np.flatnonzero(row != fill)]
        random.shuffle(stored)
        columns += stored
        bounds.append(len(columns))
    rows = np.repeat(np.arange(len(array)), np.diff(bounds))
    sparse = SparseCsr(
        values=array[rows, columns].tobytes(),
        crow_indices=int64_bytes(*bounds),
        col_indices=int64_bytes(*columns),
    )
    tensor = tensor_from_array(array)
    label = tensor.dtype
    back = array_from_tensor(Tensor(sparse_csr=sparse, dtype=label, shape=array.shape), fill=fill)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_csr_as_pytorch_writes_it() -> None:
    torch = pytest.importorskip("torch")
    dense = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, -1.0]])
    stored = dense.to_sparse_csr()
    sparse = SparseCsr(
        values=stored.values().numpy().tobytes(),
        crow_indices=stored.crow_indices().numpy().tobytes(),
        col_indices=stored.col_indices().numpy().tobytes(),
    )
    tensor = Tensor(sparse_csr=sparse, dtype=FLOAT32, shape=dense.shape)
    np.testing.assert_array_equal(array_from_tensor(tensor), dense.numpy())


def test_csr_of_bfloat16() -> None:
    sparse = SparseCsr(
        values=bytes.fromhex("803f"), crow_indices=int64_bytes(0, 1), col_indices=int64_bytes(1)
    )
    tensor = Tensor(sparse_csr=sparse, dtype=BFLOAT16, shape=[1, 2])
    np.testing.assert_array_equal(array_from_tensor(tensor, fill=-1), [[-1, 1]])


# Batches


@given(st.data(), KEPT, st.lists(st.integers(1, 3), max_size=2))
def test_a_batch_comes_back_as_it_went(
    data: st.DataObject, dtype: np.dtype[np.generic], trailing: list[int]
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 5), max_size=5))
    arrays = [data.draw(hnp.arrays(dtype, (length, *trailing))) for length in lengths]
    batched = BatchedTensor.FromString(batched_from_arrays(arrays).SerializeToString())
    back = arrays_from_batched(batched)
    assert len(back) == len(arrays)
    for array, other in zip(arrays, back, strict=True):
        assert other.dtype == dtype
        assert other.shape == array.shape
        assert other.tobytes() == array.tobytes()


def test_the_layout_of_a_batch() -> None:
    """Offsets are in bytes, one more than there are datums."""
    arrays = [np.array([[1, 2], [3, 4]], np.int32), np.empty((0, 2), np.int32)]
    batched = batched_from_arrays([*arrays, np.array([[5, 6]], np.int32)])
    assert batched.data == np.arange(1, 7, dtype="<i4").tobytes()
    assert batched.offsets == int64_bytes(0, 16, 16, 24)
    assert batched.dtype == INT32
    assert list(batched.trailing_shape) == [2]


@pytest.mark.parametrize(("dtype", "label"), [(np.float32, FLOAT32), (np.int64, INT64)])
def test_an_empty_batch_is_labelled(dtype: type[np.generic], label: int) -> None:
    batched = batched_from_arrays([], dtype=dtype)
    assert batched.dtype == label
    assert batched.offsets == int64_bytes(0)
    assert arrays_from_batched(batched) == []


def test_a_batch_of_bfloat16_is_split_at_its_own_bytes() -> None:
    data = bytes.fromhex("803f00400000")
    batched = BatchedTensor(data=data, offsets=int64_bytes(0, 4, 6), dtype=BFLOAT16)
    first, second = arrays_from_batched(batched)
    np.testing.assert_array_equal(first, [1, 2])
    np.testing.assert_array_equal(second, [0])


def test_a_batch_is_read_as_views_of_one_buffer() -> None:
    batched = batched_from_arrays([np.arange(3.0), np.arange(2.0)])
    first, second = arrays_from_batched(batched)
    assert viewed_bytes(first) == batched.data
    assert viewed_bytes(first) is viewed_bytes(second)


# Packed tokens and floats


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_tokens_come_back(tokens: list[int]) -> None:
    packed = token_bytes(tokens)
    assert token_bytes(np.array(tokens, np.int64)) == packed == token_bytes(iter(tokens))
    assert tokens_from_bytes(packed).tolist() == tokens


@given(hnp.arrays("<f4", st.integers(0, 9)))
def test_floats_come_back(array: NDArray[np.float32]) -> None:
    assert floats_from_bytes(array.tobytes()).tobytes() == array.tobytes()


def test_packed_tokens_are_viewed() -> None:
    packed = token_bytes([1, 2, 3])
    assert viewed_bytes(tokens_from_bytes(packed)) is packed
    assert viewed_bytes(floats_from_bytes(packed)) is packed
