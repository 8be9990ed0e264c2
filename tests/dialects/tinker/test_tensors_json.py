from __future__ import annotations

import numpy as np
import pytest

from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.dialects.tinker.tensors_json import (
    array_from_list,
    array_to_json,
    tensor_from_json,
    tensor_to_json,
)
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
        np.array([0.1, np.nan, np.inf, -np.inf], dtype=np.float32),
    ],
)
def test_dense_tensors_come_back_to_the_bit(array: np.ndarray) -> None:
    tensor = tensor_from_array(array)

    assert _round_trip(tensor) == tensor


def test_every_float32_comes_back_to_the_bit() -> None:
    bits = np.random.default_rng(7).integers(0, 2**32, 200_000, dtype=np.uint64)
    floats = bits.astype(np.uint32).view(np.float32)
    floats = floats[np.isfinite(floats)]

    assert _round_trip(tensor_from_array(floats)).dense == floats.tobytes()


def test_sparse_tensors_stay_sparse() -> None:
    tensor = Tensor(
        sparse_csr=SparseCsr(
            values=np.array([0.5, -1.5], dtype="<f4").tobytes(),
            crow_indices=np.array([0, 1, 1, 2], dtype="<i8").tobytes(),
            col_indices=np.array([2, 0], dtype="<i8").tobytes(),
        ),
        dtype=DType.DTYPE_FLOAT32,
        shape=[3, 3],
    )

    told = tensor_to_json(tensor)

    assert read_json(write_json(told)) == {
        "data": [0.5, -1.5],
        "dtype": "float32",
        "shape": [3, 3],
        "sparse_crow_indices": [0, 1, 1, 2],
        "sparse_col_indices": [2, 0],
    }
    assert _round_trip(tensor) == tensor


def test_narrow_types_are_told_in_the_two_that_json_has() -> None:
    int32 = Tensor(dense=np.array([5, -5], "<i4").tobytes(), dtype=DType.DTYPE_INT32, shape=[2])
    bfloat16 = Tensor(dense=b"\x80\x3f", dtype=DType.DTYPE_BFLOAT16, shape=[1])

    assert read_json(write_json(tensor_to_json(int32)))["dtype"] == "int64"
    assert read_json(write_json(tensor_to_json(bfloat16))) == {
        "data": [1.0],
        "dtype": "float32",
        "shape": [1],
    }


def test_a_shape_is_not_needed_and_null_is_none() -> None:
    tensor = tensor_from_json({"data": [1, 2.5], "dtype": "float32", "shape": None}, "x")

    assert array_from_tensor(tensor).tolist() == [1.0, 2.5]
    assert list(tensor.shape) == [2]


def test_answers_may_hold_a_bare_number_without_a_dtype() -> None:
    tensor = tensor_from_json({"data": 0.25}, "x", default_dtype="float32")

    assert array_from_tensor(tensor).tolist() == [0.25]


def test_whole_floats_are_integers() -> None:
    tensor = tensor_from_json({"data": [1.0, 3.0], "dtype": "int64"}, "x")

    assert array_from_tensor(tensor).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": [1.5], "dtype": "int64"}, "x.data[0]: is 1.5; must be an integer of int64"),
        ({"data": [float("nan")], "dtype": "int64"}, "x.data[0]: is nan; must be an integer"),
        ({"data": [2**63], "dtype": "int64"}, "x.data[0]: is 9223372036854775808; must be"),
        ({"data": [1.0, 1e39], "dtype": "float32"}, "x.data[1]: is 1e+39; must fit float32"),
        ({"data": ["1"], "dtype": "float32"}, "x.data: has '1' at [0]; must be a list of numbers"),
        ({"data": [1, None], "dtype": "float32"}, "x.data: has null at [1]"),
        ({"data": [[1], [2, 3]], "dtype": "float32"}, "x.data: has a list of 1 at [0]"),
        ({"data": [[1], [2]], "dtype": "float32"}, "x.data: has a list of 1 at [0]"),
        ({"data": "AAAA", "dtype": "float32"}, "x.data: is 'AAAA'; must be a list of numbers"),
        ({"data": [1], "dtype": "float16"}, "x.dtype: is 'float16'; must be 'int64' or 'float32'"),
        ({"data": [1]}, "x.dtype: is ''; must be"),
        ({"dtype": "int64"}, "x.data: is not given"),
        ({"data": [1], "dtype": "int64", "shape": [2]}, "x.shape: is [2], which is 2 elements"),
        ({"data": [1], "dtype": "int64", "shape": [-1]}, "x.shape: has -1; extents are"),
        ([1], "x: is a list of 1; must be an object"),
        (
            {"data": [1], "dtype": "int64", "shape": [1], "sparse_crow_indices": [0, 1]},
            "x.sparse_col_indices: is not given",
        ),
    ],
)
def test_what_is_no_tensor_data_is_named(value: object, message: str) -> None:
    with pytest.raises(GatewayError) as caught:
        tensor_from_json(value, "x")

    assert message in caught.value.message


def test_null_is_nan_only_where_it_is_documented() -> None:
    dtype = np.dtype("<f4")

    floats = array_from_list([None, -1, -0.5], dtype, "logprobs", null_is_nan=True)

    np.testing.assert_array_equal(floats, np.array([np.nan, -1, -0.5], np.float32))
    with pytest.raises(GatewayError, match="has 'a' at"):
        array_from_list([None, "a"], dtype, "logprobs", null_is_nan=True)


def test_numbers_that_are_not_finite_are_told_as_python_tells_them() -> None:
    assert write_json(array_to_json(np.array([1.5, np.nan, -np.inf]))) == (
        b'{"data":[1.5,NaN,-Infinity],"dtype":"float32","shape":[3]}'
    )
