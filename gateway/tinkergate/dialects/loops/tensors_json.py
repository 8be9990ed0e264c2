"""Tensors as Loops' JSON tells them: `TensorData` (wire section 5.4).

`{"data": [...], "dtype": ..., "shape": [...]}` holds all elements in row-major order, as a flat
list or nested as the shape says; all three are always there. There is no sparse form, and null
stands for NaN among floats. Lists become arrays in one go, and arrays are written in one go.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.dialects.tinker.json_fields import Fields, shown
from tinkergate.dialects.tinker.tensors_json import array_from_list
from tinkergate.errors import invalid_field
from tinkergate.tensors import MAX_DIMENSIONS, array_from_tensor, tensor_from_array
from tinkergate.v1 import Tensor

_FLOAT32 = np.dtype("<f4")
_INT64 = np.dtype("<i8")
_DTYPES: dict[str, np.dtype[np.generic]] = {
    "float16": _FLOAT32,
    "bfloat16": _FLOAT32,
    "float32": _FLOAT32,
    "float64": _FLOAT32,
    "bool": _INT64,
    "int8": _INT64,
    "int32": _INT64,
    "int64": _INT64,
}
"""The names that the official client knows; it takes others for float32."""


def tensor_from_json(value: object, field: str) -> Tensor:
    """A dense Tensor of float32 or int64, of TensorData at the path `field`. null is NaN among
    floats, and no integer. Raises GatewayError (INVALID)."""
    fields = Fields(value, field)
    dtype = _DTYPES.get(fields.text("dtype"), _FLOAT32)
    shape = _shape(fields)
    data = _flat(fields.raw("data"), shape, fields.path("data"))
    if fields.text("dtype") == "bool":
        data = [int(x) if isinstance(x, bool) else x for x in data]
    floats = dtype is _FLOAT32
    elements = array_from_list(data, dtype, fields.path("data"), null_is_nan=floats)
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
    extents = fields.raw("shape")
    if not isinstance(extents, list) or len(extents) > MAX_DIMENSIONS:
        raise fields.wrong("shape", f"must be a list of at most {MAX_DIMENSIONS} extents")
    for extent in extents:
        if isinstance(extent, bool) or not isinstance(extent, int) or not 0 <= extent < 1 << 48:
            raise invalid_field(
                fields.path("shape"), f"has {shown(extent)}; extents are integers from 0"
            )
    return extents


def _flat(values: Any, shape: list[int], field: str) -> Any:
    """The elements of lists that may be nested as the shape says."""
    for extent in shape[1:]:
        if not isinstance(values, list) or not values or not isinstance(values[0], list):
            break
        for row in values:
            if not isinstance(row, list) or len(row) != extent:
                raise invalid_field(field, f"has {shown(row)}; the shape {shape} asks for {extent}")
        values = list(chain.from_iterable(values))
    return values


def tensor_to_json(tensor: Tensor, *, fill: float = 0) -> dict[str, Any]:
    """TensorData of a Tensor, for `json_text.write_json`. CSR is filled out with `fill`, int32 is
    told as int64 and bfloat16 as float32. Raises ValueError for a tensor that is not well-formed,
    or has an infinity."""
    return array_to_json(array_from_tensor(tensor, fill=fill))


def array_to_json(array: NDArray[np.generic]) -> dict[str, Any]:
    """TensorData of an array of floats or integers, for `json_text.write_json`, which writes NaN as
    null. Raises ValueError for infinities: Loops' JSON has no form for them."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "f":
        endless = np.isinf(flat)
        if bool(endless.any()):
            place = int(endless.argmax())
            raise ValueError(f"element {place} is {flat[place]}; must be finite, or NaN for none")
    name = "float32" if flat.dtype.kind == "f" else "int64"
    return {"data": flat, "dtype": name, "shape": list(array.shape)}
