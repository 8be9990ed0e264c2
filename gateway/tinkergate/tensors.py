"""Tensor messages and numpy arrays: the one place that knows dtypes and endianness.

Reading gives views into the message's bytes wherever the bytes can be viewed (float32, int64,
int32 on a little-endian machine), so reading costs nothing per element; the views are read-only.
bfloat16 is widened to float32 and CSR is filled out. Whatever is wrong with a tensor is raised as
ValueError with a text that names the value and the rule; the caller adds the field's path.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

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
    np.dtype(np.float32): DType.DTYPE_FLOAT32,
    np.dtype(np.int64): DType.DTYPE_INT64,
    np.dtype(np.int32): DType.DTYPE_INT32,
}
MAX_DIMENSIONS = 8


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


def _checked_shape(shape: Sequence[int], stored: int) -> tuple[int, ...]:
    if not shape:
        return (stored,)
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
    if min(shape) < 0:
        raise ValueError(f"shape is {list(shape)}; no extent may be negative")
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
    shape = _checked_shape(tensor.shape, flat.size)
    if math.prod(shape) != flat.size:
        raise ValueError(
            f"shape is {list(shape)}, which is {math.prod(shape)} elements; dense holds {flat.size}"
        )
    return flat.reshape(shape)


def _array_from_csr(tensor: Tensor, fill: float, max_elements: int) -> Array:
    """Fill out a two-dimensional CSR tensor."""
    if len(tensor.shape) != 2 or min(tensor.shape) < 0:
        raise ValueError(f"shape is {list(tensor.shape)}; a CSR tensor has two dimensions")
    rows, columns = tensor.shape
    if rows * columns > max_elements:
        raise ValueError(f"shape is {[rows, columns]}; at most {max_elements} elements are allowed")
    values = _elements(tensor.sparse_csr.values, tensor.dtype, "values")
    crow = _elements(tensor.sparse_csr.crow_indices, DType.DTYPE_INT64, "crow_indices")
    column = _elements(tensor.sparse_csr.col_indices, DType.DTYPE_INT64, "col_indices")
    if crow.size != rows + 1:
        raise ValueError(f"crow_indices has {crow.size} entries; must have rows + 1 = {rows + 1}")
    counts = np.diff(crow)
    if crow[0] != 0 or crow[-1] != values.size or (counts < 0).any():
        raise ValueError(f"crow_indices must rise from 0 to the {values.size} stored values")
    if column.size != values.size:
        raise ValueError(f"col_indices has {column.size} entries; must have {values.size}")
    if column.size and (column.min() < 0 or column.max() >= columns):
        raise ValueError(f"col_indices must lie in 0..{columns - 1}")
    dense = np.full((rows, columns), fill, dtype=values.dtype)
    dense[np.repeat(np.arange(rows), counts), column] = values
    return dense


def tensor_from_array(array: NDArray[np.generic]) -> Tensor:
    """A dense Tensor. Other floats become float32, other integers and booleans int64."""
    packed = _packable(array)
    return Tensor(dense=packed.tobytes(), dtype=_DTYPE_OF_KIND[packed.dtype], shape=packed.shape)


def _packable(array: NDArray[np.generic]) -> Array:
    """`array` in C order and in one of the dtypes that are written."""
    if array.dtype not in _DTYPE_OF_KIND:
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        elif array.dtype.kind in "iub":
            array = array.astype(np.int64)
        else:
            raise ValueError(f"dtype is {array.dtype}; must be a real number")
    return np.ascontiguousarray(array)


def batched_from_arrays(
    arrays: Sequence[NDArray[np.generic]], *, dtype: type[np.generic] = np.float32
) -> BatchedTensor:
    """The arrays laid end to end. All have the same extents after the first; `dtype` is what an
    empty batch is labelled with. Raises ValueError for arrays that do not go together."""
    packed = [_packable(array) for array in arrays] or [_packable(np.empty(0, dtype))]
    trailing = packed[0].shape[1:]
    kind = packed[0].dtype
    for array in packed:
        if array.ndim == 0 or array.shape[1:] != trailing or array.dtype != kind:
            raise ValueError(
                f"arrays of shape {array.shape} ({array.dtype}) and (N, *{trailing}) ({kind}) "
                "cannot be batched"
            )
    offsets = np.zeros(len(arrays) + 1, dtype="<i8")
    np.cumsum([array.nbytes for array in packed[: len(arrays)]], out=offsets[1:])
    return BatchedTensor(
        data=b"".join([array.tobytes() for array in packed]),
        offsets=offsets.tobytes(),
        dtype=_DTYPE_OF_KIND[kind],
        trailing_shape=trailing,
    )


def arrays_from_batched(batched: BatchedTensor) -> list[Array]:
    """One array a datum, views into one buffer. Raises ValueError."""
    flat = _elements(batched.data, batched.dtype, "data")
    offsets = _elements(batched.offsets, DType.DTYPE_INT64, "offsets")
    trailing = tuple(batched.trailing_shape)
    if offsets.size == 0:
        raise ValueError("offsets is empty; must have one entry more than there are datums")
    if offsets[0] != 0 or offsets[-1] != len(batched.data) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to the {len(batched.data)} bytes of data")
    if trailing and min(trailing) <= 0:
        raise ValueError(f"trailing_shape is {list(trailing)}; extents must be positive")
    row_bytes = _WIRE_DTYPES[batched.dtype].itemsize * math.prod(trailing)
    if (offsets % row_bytes).any():
        raise ValueError(f"offsets must be multiples of the {row_bytes} bytes of one row")
    rows = flat.reshape(-1, *trailing)
    bounds = (offsets // row_bytes).tolist()
    return [rows[start:end] for start, end in itertools.pairwise(bounds)]


def token_bytes(tokens: Iterable[int] | NDArray[np.generic]) -> bytes:
    """Token ids as the packed int32 of EncodedTextChunk and SampledSequence."""
    array = tokens if isinstance(tokens, np.ndarray) else np.fromiter(tokens, dtype=np.int64)
    return array.astype("<i4").tobytes()


def tokens_from_bytes(data: bytes) -> NDArray[np.int32]:
    """The int32 token ids of EncodedTextChunk or SampledSequence. Raises ValueError."""
    return _elements(data, DType.DTYPE_INT32, "tokens")  # type: ignore[return-value]


def floats_from_bytes(data: bytes) -> FloatArray:
    """The packed float32 of `SampledSequence.logprobs` and the like. Raises ValueError."""
    return _elements(data, DType.DTYPE_FLOAT32, "logprobs")  # type: ignore[return-value]
