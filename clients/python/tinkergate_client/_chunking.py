"""Splitting a large batch by the gateway's limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import grpc

from tinkergate.v1 import Datum, Limits, ReverseKlDatum, VlaDatum
from tinkergate_client._errors import InvalidRequest, Violation

_MESSAGE_MARGIN = 64 * 1024  # the request's other fields


Example = TypeVar("Example", Datum, ReverseKlDatum, VlaDatum)


def split(data: Sequence[Example], limits: Limits, *, together: int = 1) -> list[Sequence[Example]]:
    """`data` in order, as few chunks as the greedy rule gives: a chunk is closed when the next
    datum would take it past `chunk_datums` datums or `chunk_bytes`. A datum that is larger than
    that goes alone. Every `together` datums in a row are taken for one: 2 keeps pairs in one chunk.
    Raises InvalidRequest for what no message can carry."""
    largest = limits.max_message_bytes - _MESSAGE_MARGIN
    chunks: list[Sequence[Example]] = []
    start = size = 0
    for index in range(0, len(data), together):
        end = min(index + together, len(data))
        bytes_ = sum(datum.ByteSize() for datum in data[index:end])
        if bytes_ > largest:
            also = "" if end == index + 1 else f" with data[{end - 1}], which it must go with"
            violation = Violation(
                f"data[{index}]", f"takes {bytes_} bytes{also}; a message carries at most {largest}"
            )
            raise InvalidRequest(
                f"{violation.field}: {violation.description}",
                code=grpc.StatusCode.INVALID_ARGUMENT,
                reason="TOO_LARGE",
                violations=(violation,),
            )
        full = end - start > limits.chunk_datums or size + bytes_ > limits.chunk_bytes
        if index > start and full:
            chunks.append(data[start:index])
            start, size = index, 0
        size += bytes_
    chunks.append(data[start:])
    return chunks
