"""Telling a repeat of a request from another request."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ErrorReason


def request_hash(request: Message) -> bytes:
    """SHA-256 of the request as it is serialised deterministically, without its `request_id`: a
    retry is the same request whatever it is called."""
    return hash_and_size(request)[0]


def hash_and_size(request: Message) -> tuple[bytes, int]:
    """`request_hash`, and the size of what was hashed in bytes: both cost one serialisation."""
    fields = request.DESCRIPTOR.fields_by_name
    request_id = getattr(request, "request_id", "") if "request_id" in fields else ""
    if request_id:
        request.ClearField("request_id")
    packed = request.SerializeToString(deterministic=True)
    if request_id:
        request.request_id = request_id  # type: ignore[attr-defined]
    return hashlib.sha256(packed).digest(), len(packed)


def conflict(what: str) -> GatewayError:
    """The identity `what` was used before with another request."""
    return GatewayError(
        Kind.CONFLICT,
        ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT,
        f"{what} was used before with another request",
    )
