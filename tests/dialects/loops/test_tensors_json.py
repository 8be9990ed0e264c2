from __future__ import annotations

import math

import numpy as np
import pytest

from tinkergate.dialects.loops.tensors_json import tensor_from_json, tensor_to_json
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import GatewayError
from tinkergate.tensors import array_from_tensor, tensor_from_array
from tinkergate.v1 import DType, SparseCsr, Tensor


def _round_trip(tensor: Tensor) -> Tensor:
    return tensor_from_json(read_json(write_json(tensor_to_json(tensor))), "x")


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, -2, 2**62], dtype=np.int64),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.empty(0, dtype=np.float32),
        np.empty((0, 3), dtype=np.int64),
        np.array([0.1, np.nan, -0.0], dtype=np.float32),
    ],
)
def test_dense_tensors_come_back_to_the_bit(array: np.ndarray) -> None:
    tensor = tensor_from_array(array)

    assert _round_trip(tensor) == tensor


def test_not_a_number_is_null() -> None:
    told = write_json(tensor_to_json(tensor_from_array(np.array([np.nan], np.float32))))

    assert told == b'{"data":[null],"dtype":"float32","shape":[1]}'


def test_an_infinity_has_no_form() -> None:
    with pytest.raises(ValueError, match=r"element 1 is -inf"):
        tensor_to_json(tensor_from_array(np.array([0.0, -np.inf], np.float32)))


def test_sparse_tensors_are_filled_out() -> None:
    tensor = Tensor(
        sparse_csr=SparseCsr(
            values=np.array([0.5, -1.5], dtype="<f4").tobytes(),
            crow_indices=np.array([0, 1, 2], dtype="<i8").tobytes(),
            col_indices=np.array([2, 0], dtype="<i8").tobytes(),
        ),
        dtype=DType.DTYPE_FLOAT32,
        shape=[2, 3],
    )

    assert read_json(write_json(tensor_to_json(tensor))) == {
        "data": [0.0, 0.0, 0.5, -1.5, 0.0, 0.0],
        "dtype": "float32",
        "shape": [2, 3],
    }


def test_nested_lists_are_as_good_as_flat_ones() -> None:
    nested = {"data": [[1, 2], [3, 4], [5, 6]], "dtype": "int64", "shape": [3, 2]}

    read = tensor_from_json(nested, "x")

    assert read == tensor_from_json(nested | {"data": [1, 2, 3, 4, 5, 6]}, "x")
    assert array_from_tensor(read).tolist() == nested["data"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "of another world"])
def test_all_floats_are_float32(dtype: str) -> None:
    read = tensor_from_json({"data": [1, None, 2.5], "dtype": dtype, "shape": [3]}, "x")

    assert read.dtype == DType.DTYPE_FLOAT32
    assert array_from_tensor(read).tolist() == [1.0, pytest.approx(math.nan, nan_ok=True), 2.5]


def test_truth_values_are_integers() -> None:
    read = tensor_from_json({"data": [True, False], "dtype": "bool", "shape": [2]}, "x")

    assert array_from_tensor(read).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1.0], "x: is a list of 1; must be an object"),
        ({"data": [1], "shape": [1]}, "x.dtype: is not given"),
        ({"data": [1], "dtype": "int64"}, "x.shape: is not given"),
        ({"dtype": "int64", "shape": [1]}, "x.data: is not given"),
        ({"data": [1], "dtype": "int64", "shape": 1}, "x.shape: is 1; must be a list"),
        ({"data": [1], "dtype": "int64", "shape": [-1]}, "x.shape: has -1"),
        ({"data": [1], "dtype": "int64", "shape": [2]}, "x.shape: is [2], which is 2 elements"),
        ({"data": [None], "dtype": "int64", "shape": [1]}, "x.data: has null at [0]"),
        ({"data": [1.5], "dtype": "int64", "shape": [1]}, "x.data[0]: is 1.5"),
        ({"data": ["a"], "dtype": "float32", "shape": [1]}, "x.data: has 'a' at [0]"),
        ({"data": [[1, 2], [3]], "dtype": "int64", "shape": [2, 2]}, "x.data: has a list of 1"),
        ({"data": [[1], 2], "dtype": "int64", "shape": [2, 1]}, "x.data: has 2; the shape"),
        ({"data": [[1]], "dtype": "int64", "shape": [1]}, "x.data: has a list of 1 at [0]"),
        ({"data": [True], "dtype": "int64", "shape": [1]}, "x.data: has true at [0]"),
    ],
)
def test_what_is_wrong_is_told(value: object, told: str) -> None:
    with pytest.raises(GatewayError) as caught:
        tensor_from_json(value, "x")

    assert str(caught.value).startswith(told)
