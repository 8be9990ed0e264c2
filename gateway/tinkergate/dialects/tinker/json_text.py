"""JSON text, with the numbers that JSON does not know.

Python programs write NaN and Infinity into JSON and read them back, and the official SDKs are
Python programs. orjson, which is fast, refuses them on reading and writes null for them. So text
that orjson refuses for their sake is read by the standard library, and where a number that is not
finite has to be told as itself, `number` and `numbers` write the token that Python writes. Where
null is documented for "none" (prompt logprobs), a numpy array with NaN is written as it is.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tinkergate.errors import ErrorReason, GatewayError, Kind

_TOKENS = (b"NaN", b"Infinity")
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def read_json(text: bytes) -> Any:
    """The value that `text` holds; NaN and Infinity are numbers. Raises GatewayError (INVALID)
    for what is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if not any(token in text for token in _TOKENS):
            raise _no_json(str(error)) from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(str(error)) from None


def write_json(value: object) -> bytes:
    """`value` as JSON in UTF-8. Arrays of numpy are written without an object for each element;
    NaN and infinity become null unless `number` or `numbers` made them tokens."""
    return orjson.dumps(value, option=_OPTIONS)


def number(value: float) -> float | orjson.Fragment:
    """A number that is told as itself whatever it is."""
    return value if math.isfinite(value) else orjson.Fragment(_token(value))


def numbers(array: NDArray[np.generic]) -> NDArray[np.generic] | orjson.Fragment:
    """A flat array of numbers that are told as themselves whatever they are."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return array
    # Never on a good day: one element that is not finite makes the loss useless.
    parts = (orjson.dumps(x) if math.isfinite(x) else _token(x) for x in array.tolist())
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


def _token(value: float) -> bytes:
    if math.isnan(value):
        return b"NaN"
    return b"Infinity" if value > 0 else b"-Infinity"


def _no_json(problem: str) -> GatewayError:
    return GatewayError(
        Kind.INVALID, ErrorReason.ERROR_REASON_INVALID_FIELD, f"the body is no JSON: {problem}"
    )
