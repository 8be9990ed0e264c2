"""Tensor messages and numpy arrays: the one place that knows dtypes and endianness.

Reading gives views into the bytes that protobuf hands out (float32, int64 and int32), so it costs
nothing per element; the views are read-only.
bfloat16 is widened to float32 and CSR is filled out. Whatever is wrong with a tensor is raised as
ValueError with a text that names the value and the rule; the caller adds the field's path.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tinkergate.v1 import BatchedTensor, DType, Tensor

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Array = NDArray[np.float32] | NDArray[np.int64] | NDArray[np.int32]

_BFLOAT16 = np.dtype("<u2")
_WIRE_DTYPES: dict[int, np.dtype[np.generic]] = {
    DType.DTYPE_FLOAT32: np.dtype("<f4"),
    DType.DTYPE_INT64: np.dtype("<i8"),
    DType.DTYPE_INT32: np.dtype("<i4"),
    DType.DTYPE_BFLOAT16: _BFLOAT16,
}
_DTYPE_OF_KIND = {
    np.dtype("<f4"): DType.DTYPE_FLOAT32,
    np.dtype("<i8"): DType.DTYPE_INT64,
    np.dtype("<i4"): DType.DTYPE_INT32,
}
_INT32 = np.iinfo(np.int32)
_INT64 = np.iinfo(np.int64)
MAX_DIMENSIONS = 8
_MAX_SPAN = 1 << 48
"""The most that the extents but the zeros may multiply to. An empty array may claim any extents,
and numpy computes with them."""


def _elements(data: bytes, dtype: int, what: str) -> Array:
    """The packed elements of `data` as a flat array."""
    wire = _WIRE_DTYPES.get(dtype)
    if wire is None:
        raise ValueError(
            f"dtype is {_dtype_name(dtype)}; must be float32, int64, int32 or bfloat16"
        )
    if len(data) % wire.itemsize:
        raise ValueError(
            f"{what} has {len(data)} bytes; must be a multiple of the {wire.itemsize} bytes of "
            f"{_dtype_name(dtype)}"
        )
    flat = np.frombuffer(data, dtype=wire)
    if wire is _BFLOAT16:
        return (flat.astype(np.uint32) << 16).view(np.float32)
    return flat


def _dtype_name(dtype: int) -> str:
    if dtype in _WIRE_DTYPES:
        return DType.Name(dtype).removeprefix("DTYPE_").lower()  # type: ignore[arg-type]
    return "not given" if dtype == DType.DTYPE_UNSPECIFIED else f"unknown ({dtype})"


def _checked_shape(shape: Sequence[int], what: str = "shape") -> tuple[int, ...]:
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(
            f"{what} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed"
        )
    if any(extent < 0 for extent in shape):
        raise ValueError(f"{what} is {list(shape)}; no extent may be negative")
    if math.prod(extent for extent in shape if extent) > _MAX_SPAN:
        raise ValueError(f"{what} is {list(shape)}; at most {_MAX_SPAN} elements are allowed")
    return tuple(shape)


def array_from_tensor(tensor: Tensor, *, fill: float = 0, max_elements: int = 1 << 28) -> Array:
    """The tensor as an array of float32, int64 or int32 in its shape.

    `fill` stands where a CSR tensor stores nothing; `max_elements` bounds what a CSR tensor may
    fill out to, so that a small message cannot ask for much memory. Raises ValueError.
    """
    encoding = tensor.WhichOneof("encoding")
    if encoding == "sparse_csr":
        return _array_from_csr(tensor, fill, max_elements)
    flat = _elements(tensor.dense, tensor.dtype, "dense")
    shape = _checked_shape(tensor.shape) or (flat.size,)
    if math.prod(shape) != flat.size:
        raise ValueError(
            f"shape is {list(shape)}, which is {math.prod(shape)} elements; dense holds {flat.size}"
        )
    return flat.reshape(shape)


def _array_from_csr(tensor: Tensor, fill: float, max_elements: int) -> Array:
    """Fill out a two-dimensional CSR tensor."""
    shape = _checked_shape(tensor.shape)
    if len(shape) != 2:
        raise ValueError(f"shape is {list(shape)}; a CSR tensor has two dimensions")
    rows, columns = shape
    if rows * columns > max_elements:
        raise ValueError(f"shape is {[rows, columns]}; at most {max_elements} elements are allowed")
    values = _elements(tensor.sparse_csr.values, tensor.dtype, "values")
    crow = _elements(tensor.sparse_csr.crow_indices, DType.DTYPE_INT64, "crow_indices")
    column = _elements(tensor.sparse_csr.col_indices, DType.DTYPE_INT64, "col_indices")
    if crow.size != rows + 1:
        raise ValueError(f"crow_indices has {crow.size} entries; must have rows + 1 = {rows + 1}")
    if not _rises(crow, values.size):
        raise ValueError(f"crow_indices must rise from 0 to the {values.size} stored values")
    if column.size != values.size:
        raise ValueError(f"col_indices has {column.size} entries; must have {values.size}")
    if column.size and not 0 <= _lowest(column) <= _highest(column) < columns:
        raise ValueError(f"col_indices must lie in 0..{columns - 1}")
    places = np.repeat(np.arange(rows), np.diff(crow)) * columns + column
    # Stored in order, as is usual, they need no sorting to be told apart.
    if (np.diff(places) <= 0).any() and np.unique(places).size < places.size:
        raise ValueError("col_indices must not name a column twice in a row")
    dense = np.full(rows * columns, fill, dtype=values.dtype)
    dense[places] = values
    return dense.reshape(rows, columns)


def _rises(offsets: Array, end: int) -> bool:
    """Whether offsets begin at 0, never fall, and reach `end`."""
    # Neighbours are compared: their difference can overflow.
    return bool(offsets[0] == 0 and offsets[-1] == end and (offsets[1:] >= offsets[:-1]).all())


def tensor_from_array(array: NDArray[np.generic]) -> Tensor:
    """A dense Tensor. Other floats become float32, other integers and booleans int64, a scalar an
    array of one element. Raises ValueError for what these cannot hold."""
    packed = _packable(array)
    return Tensor(dense=packed.tobytes(), dtype=_DTYPE_OF_KIND[packed.dtype], shape=packed.shape)


def _packable(array: NDArray[np.generic]) -> Array:
    """`array` in C order and in one of the dtypes that are written."""
    if array.dtype not in _DTYPE_OF_KIND:
        if array.dtype.kind == "f":
            array = _narrowed(array)
        elif array.dtype.kind in "iub":
            if array.dtype.kind == "u" and array.size and _highest(array) > _INT64.max:
                raise ValueError(f"{_highest(array)} does not fit int64")
            array = array.astype("<i8")
        else:
            raise ValueError(f"dtype is {array.dtype}; must be a real number")
    return np.ascontiguousarray(array)


def _lowest(array: NDArray[np.generic]) -> int:
    """The least of some integers."""
    return int(cast(IntArray, array).min())


def _highest(array: NDArray[np.generic]) -> int:
    """The greatest of some integers."""
    return int(cast(IntArray, array).max())


def _narrowed(array: NDArray[np.generic]) -> FloatArray:
    """Floats as float32. What is finite stays so."""
    try:
        with np.errstate(over="raise"):
            return array.astype("<f4")
    except FloatingPointError:
        raise ValueError(f"{array.dtype} holds a number that is too large for float32") from None


def batched_from_arrays(
    arrays: Sequence[NDArray[np.generic]], *, dtype: type[np.generic] = np.float32
) -> BatchedTensor:
    """The arrays laid end to end. All have the same extents after the first; `dtype` is what an
    empty batch is labelled with. Raises ValueError for arrays that do not go together, or that
    `tensor_from_array` refuses."""
    packed = [_packable(array) for array in arrays]
    trailing = packed[0].shape[1:] if packed else ()
    kind = (packed[0] if packed else _packable(np.empty(0, dtype))).dtype
    for array in packed:
        if array.shape[1:] != trailing or array.dtype != kind:
            first, other = (("N", *extents) for extents in (trailing, array.shape[1:]))
            raise ValueError(
                f"arrays are {kind} {list(first)} and {array.dtype} {list(other)}; all must have "
                "one dtype and the same extents after the first"
            )
    if 0 in trailing:
        raise ValueError(f"trailing_shape is {list(trailing)}; extents must be positive")
    offsets = np.zeros(len(packed) + 1, dtype="<i8")
    offsets[1:] = list(itertools.accumulate(array.nbytes for array in packed))
    return BatchedTensor(
        data=b"".join([array.tobytes() for array in packed]),
        offsets=offsets.tobytes(),
        dtype=_DTYPE_OF_KIND[kind],
        trailing_shape=trailing,
    )


def arrays_from_batched(batched: BatchedTensor) -> list[Array]:
    """One array a datum, views into one buffer. Raises ValueError."""
    data = batched.data  # protobuf copies the bytes every time they are asked for
    flat = _elements(data, batched.dtype, "data")
    offsets = _elements(batched.offsets, DType.DTYPE_INT64, "offsets")
    trailing = _checked_shape(batched.trailing_shape, "trailing_shape")
    if offsets.size == 0:
        raise ValueError("offsets is empty; must have one entry more than there are datums")
    if not _rises(offsets, len(data)):
        raise ValueError(f"offsets must rise from 0 to the {len(data)} bytes of data")
    if 0 in trailing:
        raise ValueError(f"trailing_shape is {list(trailing)}; extents must be positive")
    row_bytes = _WIRE_DTYPES[batched.dtype].itemsize * math.prod(trailing)
    if (offsets % row_bytes).any():
        raise ValueError(f"offsets must be multiples of the {row_bytes} bytes of one row")
    rows = flat.reshape(-1, *trailing)
    bounds = (offsets // row_bytes).tolist()
    return [rows[start:end] for start, end in itertools.pairwise(bounds)]


def token_bytes(tokens: Iterable[int] | NDArray[np.generic]) -> bytes:
    """Token ids as the packed int32 of EncodedTextChunk and SampledSequence. Raises ValueError for
    what is no integer or does not fit int32."""
    array = tokens if isinstance(tokens, np.ndarray) else np.asarray(list(tokens))
    if not array.size:
        return b""
    if array.dtype.kind not in "iu":
        raise ValueError(f"token ids are {array.dtype}; must be integers")
    for token in (_lowest(array), _highest(array)):
        if not _INT32.min <= token <= _INT32.max:
            raise ValueError(f"token id {token} does not fit int32")
    return array.astype("<i4").tobytes()


def tokens_from_bytes(data: bytes) -> NDArray[np.int32]:
    """The int32 token ids of EncodedTextChunk or SampledSequence. Raises ValueError."""
    return _elements(data, DType.DTYPE_INT32, "tokens")  # type: ignore[return-value]


def floats_from_bytes(data: bytes) -> FloatArray:
    """The packed float32 of `SampledSequence.logprobs` and the like. Raises ValueError."""
    return _elements(data, DType.DTYPE_FLOAT32, "logprobs")  # type: ignore[return-value]
