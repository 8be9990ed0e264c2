"""Tensors as Tinker's JSON tells them: `TensorData` (wire section 9).

`{"data": [...], "dtype": "int64" | "float32", "shape": [...]}` holds all elements in row-major
order; without a shape there is one dimension. With `sparse_crow_indices` and
`sparse_col_indices` `data` holds the stored elements of a two-dimensional tensor in compressed
sparse rows. Lists become arrays in one go, and arrays are written in one go.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.dialects.tinker.json_fields import Fields, shown
from tinkergate.dialects.tinker.json_text import numbers
from tinkergate.errors import invalid_field
from tinkergate.tensors import array_from_tensor, tensor_from_array
from tinkergate.v1 import DType, SparseCsr, Tensor

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "int64": np.dtype("<i8"),
    "float32": np.dtype("<f4"),
}
_INT64_LIMIT = 2.0**63


def tensor_from_json(value: object, field: str, *, default_dtype: str = "") -> Tensor:
    """A Tensor of TensorData at the path `field`.

    `default_dtype` stands where no dtype is given; without it a dtype must be given. With it
    `data` may be a bare number as well. Raises GatewayError (INVALID).
    """
    fields = Fields(value, field)
    dtype = _DTYPES.get(name := (fields.optional_text("dtype") or default_dtype))
    if dtype is None:
        raise invalid_field(fields.path("dtype"), f"is {name!r}; must be 'int64' or 'float32'")
    data = fields.raw("data")
    if default_dtype and not isinstance(data, list):
        data = [data]
    elements = array_from_list(data, dtype, fields.path("data"))
    shape = _shape(fields) if "shape" in fields else [elements.size]
    if "sparse_crow_indices" in fields or "sparse_col_indices" in fields:
        return _csr(fields, elements, shape)
    if math.prod(shape) != elements.size:
        raise invalid_field(
            fields.path("shape"),
            f"is {shape}, which is {math.prod(shape)} elements; data holds {elements.size}",
        )
    tensor = tensor_from_array(elements)
    # The message has no scalars: an empty shape is one dimension of one element.
    tensor.shape[:] = shape
    return tensor


def _shape(fields: Fields) -> list[int]:
    extents = fields.items("shape")
    for extent in extents:
        if isinstance(extent, bool) or not isinstance(extent, int) or not 0 <= extent < 1 << 48:
            raise invalid_field(
                fields.path("shape"), f"has {shown(extent)}; extents are integers from 0"
            )
    return extents


def _csr(fields: Fields, values: NDArray[np.generic], shape: list[int]) -> Tensor:
    indices = {}
    for name in ("sparse_crow_indices", "sparse_col_indices"):
        indices[name] = array_from_list(fields.raw(name), _DTYPES["int64"], fields.path(name))
    if "shape" not in fields or len(shape) != 2:
        raise invalid_field(fields.path("shape"), "must have two extents where indices are given")
    return Tensor(
        sparse_csr=SparseCsr(
            values=values.tobytes(),
            crow_indices=indices["sparse_crow_indices"].tobytes(),
            col_indices=indices["sparse_col_indices"].tobytes(),
        ),
        dtype=DType.DTYPE_INT64 if values.dtype.kind == "i" else DType.DTYPE_FLOAT32,
        shape=shape,
    )


def array_from_list(
    values: object, dtype: np.dtype[np.generic], field: str, *, null_is_nan: bool = False
) -> NDArray[np.generic]:
    """A flat array of a list of numbers. Whole floats are integers where integers are wanted;
    `null_is_nan` lets null stand for NaN among floats. Raises GatewayError (INVALID), also for
    what the dtype cannot hold."""
    if not isinstance(values, list):
        raise invalid_field(field, f"is {shown(values)}; must be a list of numbers")
    try:
        array: NDArray[Any] = np.array(values)
    except ValueError:  # lists of unequal lengths
        array = np.array(values, dtype=object)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, dtype)
    if array.ndim == 1 and array.dtype.kind == "O" and null_is_nan and dtype.kind == "f":
        array = _with_nulls(values, array)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise invalid_field(field, _offence(values, null_is_nan))
    if dtype.kind == "i" and array.dtype.kind != "i":
        _check_whole(array, field)
    with np.errstate(over="ignore", invalid="ignore"):
        packed = array.astype(dtype)
    if dtype.kind == "f" and array.dtype.kind == "f":
        # What is finite must stay so; what is not was meant.
        lost = np.isinf(packed) & np.isfinite(array)
        if bool(lost.any()):
            place = int(lost.argmax())
            raise invalid_field(f"{field}[{place}]", f"is {values[place]!r}; must fit {dtype.name}")
    return packed


def _with_nulls(values: list[Any], array: NDArray[Any]) -> NDArray[Any]:
    """The numbers of a list with nulls, or `array` if there is something else in it."""
    if all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in values):
        return np.array(values, dtype=np.float64)
    return array


def _check_whole(array: NDArray[Any], field: str) -> None:
    floats = array.astype(np.float64)
    # NaN is no equal of itself, and int64 cannot hold what is beyond.
    wrong = ~((np.floor(floats) == floats) & (floats >= -_INT64_LIMIT) & (floats < _INT64_LIMIT))
    if bool(wrong.any()):
        place = int(wrong.argmax())
        raise invalid_field(f"{field}[{place}]", f"is {array[place]}; must be an integer of int64")


def _offence(values: list[Any], null_is_nan: bool) -> str:
    for index, value in enumerate(values):
        if value is None and null_is_nan:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"has {shown(value)} at [{index}]; must be a list of numbers"
    return "has a number that is too large; must be a list of numbers of 64 bits"


def tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    """TensorData of a Tensor, for `json_text.write_json`. CSR stays CSR; int32 is told as int64
    and bfloat16 as float32. Raises ValueError for a tensor that is not well-formed."""
    if tensor.WhichOneof("encoding") != "sparse_csr":
        return array_to_json(array_from_tensor(tensor))
    csr = tensor.sparse_csr
    values = array_from_tensor(Tensor(dense=csr.values, dtype=tensor.dtype))
    told = array_to_json(values)
    told["shape"] = list(tensor.shape)
    for name, packed in (
        ("sparse_crow_indices", csr.crow_indices),
        ("sparse_col_indices", csr.col_indices),
    ):
        told[name] = array_from_tensor(Tensor(dense=packed, dtype=DType.DTYPE_INT64))
    return told


def array_to_json(array: NDArray[np.generic]) -> dict[str, Any]:
    """TensorData of an array of floats or integers, for `json_text.write_json`."""
    name = "float32" if array.dtype.kind == "f" else "int64"
    flat = np.ascontiguousarray(array).reshape(-1)
    return {"data": numbers(flat), "dtype": name, "shape": list(array.shape)}
