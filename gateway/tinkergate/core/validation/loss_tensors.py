"""Rules for the tensors that come with a datum: token ids, and numbers that a loss reads."""

from __future__ import annotations

import math

import numpy as np

from tinkergate.core.validation.facts import Facts
from tinkergate.core.validation.report import Report
from tinkergate.core.validation.tensors import (
    DTYPE_NAMES,
    FLOATS,
    INTEGERS,
    ITEM_BYTES,
    FiniteFloats,
    TokenIds,
    Values,
)
from tinkergate.tensors import array_from_tensor
from tinkergate.v1 import DType, Tensor

Shape = tuple[int, ...]


class TensorRules:
    """Checks the tensors of one request; `finish` ends it."""

    def __init__(self, report: Report, facts: Facts) -> None:
        self._report = report
        self._facts = facts
        self._values: dict[tuple[bool, int], Values] = {}

    def check(self, path: str, tensor: Tensor, *, is_tokens: bool) -> Shape | None:
        """The tensor's shape, or None if it has none that holds. Its values are noted."""
        dtype = tensor.dtype
        if dtype not in (INTEGERS if is_tokens else FLOATS):
            said = DTYPE_NAMES.get(dtype, "not given")
            wanted = "int64 or int32" if is_tokens else "float32 or bfloat16"
            self._report.add(path, f"has dtype {said}; must be {wanted}")
            return None
        if tensor.HasField("sparse_csr"):
            return self._check_sparse(path, tensor, is_tokens=is_tokens)
        packed = tensor.dense
        elements, rest = divmod(len(packed), ITEM_BYTES[dtype])
        shape = tuple(tensor.shape) or (elements,)
        if rest:
            self._report.add(
                path,
                f"has {len(packed)} bytes; must be a multiple of the {ITEM_BYTES[dtype]} bytes of "
                f"{DTYPE_NAMES[dtype]}",
            )
            return None
        if shape != (elements,) and (min(shape) < 0 or math.prod(shape) != elements):
            self._report.add(path, f"has shape {list(shape)}, but {elements} elements")
            return None
        self._values_of(dtype, is_tokens=is_tokens).add(path, packed)
        return shape

    def finish(self) -> None:
        """Look at the elements of all tensors."""
        for values in self._values.values():
            values.finish()

    def _check_sparse(self, path: str, tensor: Tensor, *, is_tokens: bool) -> Shape | None:
        """CSR tensors are rare, so they are simply filled out, within what a message may hold."""
        limit = self._facts.max_context_length or 1 << 20
        if len(tensor.shape) == 2 and tensor.shape[0] > limit:
            self._report.add(path, f"has shape {list(tensor.shape)}; at most {limit} rows can fit")
            return None
        try:
            array = array_from_tensor(tensor, max_elements=1 << 24)
        except ValueError as error:
            self._report.add(path, str(error))
            return None
        dtype = _dtype_of(array.dtype)
        self._values_of(dtype, is_tokens=is_tokens).add(path, array.tobytes())
        return array.shape

    def _values_of(self, dtype: int, *, is_tokens: bool) -> Values:
        values = self._values.get((is_tokens, dtype))
        if values is None:
            values = self._values[is_tokens, dtype] = (
                TokenIds(self._report, dtype, self._facts.vocab_size)
                if is_tokens
                else FiniteFloats(self._report, dtype)
            )
        return values


def _dtype_of(dtype: np.dtype[np.generic]) -> int:
    if dtype.kind == "f":
        return DType.DTYPE_FLOAT32
    return DType.DTYPE_INT64 if dtype.itemsize == 8 else DType.DTYPE_INT32
