"""Rules for packed numbers, checked at the speed of memory.

Small arrays of many datums are gathered into blocks that stay in the processor's cache, and each
block is looked through once; only when a block is bad are its arrays looked at one by one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tinkergate.core.validation.report import Report
from tinkergate.v1 import DType

BLOCK_BYTES = 1 << 19

ITEM_BYTES = {
    DType.DTYPE_FLOAT32: 4,
    DType.DTYPE_INT64: 8,
    DType.DTYPE_INT32: 4,
    DType.DTYPE_BFLOAT16: 2,
}
INTEGERS = frozenset({DType.DTYPE_INT64, DType.DTYPE_INT32})
FLOATS = frozenset({DType.DTYPE_FLOAT32, DType.DTYPE_BFLOAT16})
DTYPE_NAMES = {
    DType.DTYPE_FLOAT32: "float32",
    DType.DTYPE_INT64: "int64",
    DType.DTYPE_INT32: "int32",
    DType.DTYPE_BFLOAT16: "bfloat16",
}


class Values(ABC):
    """A rule for the elements of packed arrays. Arrays are added with the field path that a
    violation is to name; `finish` looks at the rest."""

    item_bytes: int

    def __init__(self, report: Report) -> None:
        self._report = report
        self._fields: list[str] = []
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, field: str, packed: bytes) -> None:
        """Look at `packed`, now or later. Its length is a multiple of the element's."""
        self._fields.append(field)
        self._parts.append(packed)
        self._size += len(packed)
        if self._size >= BLOCK_BYTES:
            self.finish()

    def finish(self) -> None:
        """Look at all that was added."""
        parts, fields = self._parts, self._fields
        self._parts, self._fields, self._size = [], [], 0
        if not parts:
            return
        block = parts[0] if len(parts) == 1 else b"".join(parts)
        if block and not self._all_good(block):
            ends = list(accumulate(len(part) // self.item_bytes for part in parts))
            told = -1
            for place in self._offenders(block).tolist():
                part = bisect_right(ends, place)
                if part != told and not self._report.full:
                    told = part
                    index = place - (ends[part - 1] if part else 0)
                    self._report.add(fields[part], self._describe(parts[part], index))

    @abstractmethod
    def _all_good(self, block: bytes) -> bool:
        """Whether every element keeps the rule. Not 'no' for no reason, and fast."""

    @abstractmethod
    def _offenders(self, block: bytes) -> NDArray[np.intp]:
        """Where the rule is broken."""

    @abstractmethod
    def _describe(self, packed: bytes, index: int) -> str:
        """The value and the rule."""


class TokenIds(Values):
    """Integers from `lowest` (0 or -1) up to, not including, `vocab_size`; 0 means no upper bound
    that is known."""

    def __init__(self, report: Report, dtype: int, vocab_size: int, lowest: int = 0) -> None:
        super().__init__(report)
        self.item_bytes = ITEM_BYTES[dtype]  # type: ignore[index]
        self._signed = np.dtype(f"<i{self.item_bytes}")
        self._unsigned = np.dtype(f"<u{self.item_bytes}")
        self._lowest = lowest
        self._end = vocab_size or 1 << 31

    def _all_good(self, block: bytes) -> bool:
        # Seen as unsigned, a negative number is a huge one: one pass finds both.
        if self._lowest == 0:
            return int(np.frombuffer(block, self._unsigned).max()) < self._end
        ids = np.frombuffer(block, self._signed)
        return int(ids.min()) >= self._lowest and int(ids.max()) < self._end

    def _offenders(self, block: bytes) -> NDArray[np.intp]:
        ids = np.frombuffer(block, self._signed)
        return np.flatnonzero((ids < self._lowest) | (ids >= self._end))

    def _describe(self, packed: bytes, index: int) -> str:
        value = np.frombuffer(packed, self._signed)[index]
        return f"element {index} is {value}; token ids must lie in {self._lowest}..{self._end - 1}"


class FiniteFloats(Values):
    """Numbers that are neither NaN nor infinite."""

    def __init__(self, report: Report, dtype: int) -> None:
        super().__init__(report)
        self.item_bytes = ITEM_BYTES[dtype]  # type: ignore[index]

    def _floats(self, block: bytes) -> NDArray[np.float32]:
        if self.item_bytes == 4:
            return np.frombuffer(block, "<f4")
        return (np.frombuffer(block, "<u2").astype(np.uint32) << 16).view(np.float32)

    def _all_good(self, block: bytes) -> bool:
        floats = self._floats(block)
        # NaN and infinity survive in the sum, so one pass without a temporary array settles nearly
        # every block; sums of huge numbers may overflow and are looked at again.
        with np.errstate(all="ignore"):
            return bool(np.isfinite(floats.sum())) or bool(np.isfinite(floats).all())

    def _offenders(self, block: bytes) -> NDArray[np.intp]:
        return np.flatnonzero(~np.isfinite(self._floats(block)))

    def _describe(self, packed: bytes, index: int) -> str:
        return f"element {index} is {self._floats(packed)[index]}; must be finite"
