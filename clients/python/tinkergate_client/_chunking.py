"""Splitting a large batch by the gateway's limits."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from tinkergate.v1 import Datum, Limits
from tinkergate_client._errors import InvalidRequest, Violation

_MESSAGE_MARGIN = 64 * 1024  # the request's other fields


def split(data: Sequence[Datum], limits: Limits) -> list[Sequence[Datum]]:
    """`data` in order, as few chunks as the greedy rule gives: a chunk is closed when it has
    `chunk_datums` datums, or when the next one would take it past `chunk_bytes`. A datum that is
    larger than that goes alone. Raises InvalidRequest for one that no message can carry."""
    largest = limits.max_message_bytes - _MESSAGE_MARGIN
    chunks: list[Sequence[Datum]] = []
    start = size = 0
    for index, datum in enumerate(data):
        bytes_ = datum.ByteSize()
        if bytes_ > largest:
            violation = Violation(
                f"data[{index}]", f"takes {bytes_} bytes; a message carries at most {largest}"
            )
            raise InvalidRequest(
                f"{violation.field}: {violation.description}",
                code=grpc.StatusCode.INVALID_ARGUMENT,
                reason="TOO_LARGE",
                violations=(violation,),
            )
        full = index - start == limits.chunk_datums or size + bytes_ > limits.chunk_bytes
        if index > start and full:
            chunks.append(data[start:index])
            start, size = index, 0
        size += bytes_
    chunks.append(data[start:])
    return chunks
