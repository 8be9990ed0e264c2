"""Failures as gRPC knows them: a status code, words, and google.rpc details for programs.

| detail | when | holds |
|---|---|---|
| `ErrorInfo` | always | an `ErrorReason` without its prefix, domain "tinkergate", facts by name |
| `BadRequest` | a field breaks a rule | the field's path, its value and the rule |
| `RetryInfo` | a retry makes sense | after how long |

The status travels in the trailers, twice: its words as `grpc-message`, where every byte outside
ASCII takes three, and the whole in base64. A caller refuses trailers above 8 KiB (sometimes) and
16 KiB (always), and then learns "received metadata size exceeds limit" in place of what went wrong.
So both are cut, the least telling parts first.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tinkergate.errors import GatewayError
from tinkergate.ingress.calls import reason_name

DOMAIN = "tinkergate"
MAX_MESSAGE_BYTES = 1024
"""The most bytes of a status's words: 3 KiB as `grpc-message`."""

MAX_STATUS_BYTES = 3072
"""The most bytes of a status: 4 KiB in base64."""

MAX_VALUE_BYTES = 256
"""The most bytes of a value of the metadata, where the status is too large."""


def to_status(error: GatewayError, facts: dict[str, str] | None = None) -> Status:
    """The error as a google.rpc.Status of at most `MAX_STATUS_BYTES`. `facts` (such as the id of
    the request) are added to the error's own metadata."""
    metadata = {**error.metadata, **(facts or {})}
    if error.backend:
        metadata["backend"] = error.backend
    info = ErrorInfo(reason=reason_name(error.reason), domain=DOMAIN, metadata=metadata)
    broken = BadRequest(
        field_violations=[
            BadRequest.FieldViolation(field=field, description=description)
            for field, description in error.violations
        ]
    )
    status = _assemble(error, info, broken)
    while status.ByteSize() > MAX_STATUS_BYTES and len(broken.field_violations) > 1:
        broken.field_violations.pop()
        status = _assemble(error, info, broken)
    if status.ByteSize() > MAX_STATUS_BYTES:
        for name, value in info.metadata.items():
            info.metadata[name] = _cut(value, MAX_VALUE_BYTES)
        for violation in broken.field_violations:
            violation.field = _cut(violation.field, MAX_VALUE_BYTES)
            violation.description = _cut(violation.description, MAX_VALUE_BYTES)
        status = _assemble(error, info, broken)
    while status.ByteSize() > MAX_STATUS_BYTES:
        largest = max(info.metadata, key=lambda name: len(name) + len(info.metadata[name]))
        info.metadata.pop(largest)
        status = _assemble(error, info, broken)
    return status


def _assemble(error: GatewayError, info: ErrorInfo, broken: BadRequest) -> Status:
    message = _cut(error.message, MAX_MESSAGE_BYTES)
    status = Status(code=error.code, message=message, details=[_pack(info)])
    if broken.field_violations:
        status.details.append(_pack(broken))
    if error.retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.append(_pack(retry))
    return status


def _pack(detail: ErrorInfo | BadRequest | RetryInfo) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _cut(text: str, limit: int) -> str:
    # Words of the operating system may hold surrogates, which protobuf refuses.
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"
