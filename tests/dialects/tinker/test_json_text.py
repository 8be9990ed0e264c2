from __future__ import annotations

import math

import numpy as np
import pytest

from tinkergate.dialects.tinker.json_text import number, numbers, read_json, write_json
from tinkergate.errors import GatewayError


def test_text_with_nan_and_infinity_is_read() -> None:
    value = read_json(b'{"a": NaN, "b": [-Infinity, 1]}')

    assert math.isnan(value["a"])
    assert value["b"] == [-math.inf, 1]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"NaN,", b"\xff", b'{"a": NaN', b"[" * 100_000 + b"NaN"]
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(GatewayError, match="the body is no JSON"):
        read_json(text)


def test_an_array_writes_null_for_nan_and_numbers_writes_the_token() -> None:
    array = np.array([np.nan, 1], dtype=np.float32)

    assert write_json(array) == b"[null,1.0]"
    assert write_json(numbers(array)) == b"[NaN,1.0]"


def test_a_number_is_told_as_itself() -> None:
    told = write_json([number(x) for x in (0.5, math.nan, math.inf, -math.inf)])

    assert told == b"[0.5,NaN,Infinity,-Infinity]"
