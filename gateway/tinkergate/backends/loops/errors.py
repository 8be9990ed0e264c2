"""What Loops answers when it does not do what it was asked, as GatewayErrors (wire sections 3 and
5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinkergate.backends.failures import cut, detail, failure, retry_after
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.http import Answer

_KINDS: Mapping[int, tuple[Kind, ErrorReason.ValueType]] = {
    400: (Kind.INVALID, ErrorReason.ERROR_REASON_INVALID_FIELD),
    # The key is the gateway's own: its callers can do nothing about it.
    401: (Kind.INTERNAL, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE),
    402: (Kind.EXHAUSTED, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE),
    403: (Kind.DENIED, ErrorReason.ERROR_REASON_DENIED),
    404: (Kind.NOT_FOUND, ErrorReason.ERROR_REASON_BACKEND_REFUSED),
    409: (Kind.CONFLICT, ErrorReason.ERROR_REASON_BACKEND_REFUSED),
    410: (Kind.NOT_FOUND, ErrorReason.ERROR_REASON_BACKEND_REFUSED),
    413: (Kind.INVALID, ErrorReason.ERROR_REASON_TOO_LARGE),
    422: (Kind.INVALID, ErrorReason.ERROR_REASON_INVALID_FIELD),
    429: (Kind.EXHAUSTED, ErrorReason.ERROR_REASON_QUEUE_FULL),
    501: (Kind.UNSUPPORTED, ErrorReason.ERROR_REASON_UNSUPPORTED),
}
_CALLERS = (
    "ValueError",
    "TypeError",
    "ValidationError",
    "BadRequest",
    "Invalid",
    "TooLarge",
    "NotFound",
    "Mismatch",
    "Exists",
    "Unsupported",
    "NotImplemented",
)
"""Parts of the names of errors that a trainer raises for what it was sent, before any work."""

GATEWAY_SOURCE = "06"
"""X-Baseten-Error-Source of what the serverless gateway itself refuses."""
_DEACTIVATED = ("01", "631")
"""Source and code of a dedicated model version that is switched off."""


def marked_final(answer: Answer) -> bool:
    """Whether a 4xx that would be "not yet" elsewhere is an answer for good (wire section 3)."""
    if not 400 <= answer.status < 500:
        return False
    source = answer.headers.get("x-baseten-error-source", "")
    code = answer.headers.get("x-baseten-error-code", "")
    return (
        source == GATEWAY_SOURCE
        or (source, code) == _DEACTIVATED
        or (answer.status == 400 and _bad_request(answer.body))
    )


def _bad_request(body: bytes) -> bool:
    """The two forms in which a sampler says that it was asked what cannot be."""
    value = _object(body)
    inner = value.get("error")
    return "BadRequestError" in (
        value.get("type"),
        inner.get("type") if isinstance(inner, dict) else None,
    )


def _machine_reason(body: bytes) -> str:
    """`details.reason` of an error; empty if there is none."""
    details = _object(body).get("details")
    reason = details.get("reason") if isinstance(details, dict) else None
    return reason if isinstance(reason, str) else ""


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = read_json(body)
    except GatewayError:
        return {}
    return value if isinstance(value, dict) else {}


def status_error(
    backend: str, operation: str, answer: Answer, request_id: str = ""
) -> GatewayError:
    """An answer of a status that is an error. `request_id` is the service's id of the work, where
    it has one."""
    default = (Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE)
    kind, reason = _KINDS.get(answer.status, default)
    code = answer.headers.get("x-baseten-error-code", "")
    words = _words(answer.body)
    told = f"answered {answer.status}" + (f" {code}" if code else "")
    told += f": {words}" if words else ""
    if answer.status == 401:
        told = f"does not take the gateway's key ({told})"
    error = failure(
        backend,
        operation,
        told,
        kind=kind,
        reason=reason,
        request_id=request_id or answer.headers.get("x-request-id", ""),
        retry_after=retry_after(answer.headers),
        status=answer.status,
    )
    if named := _machine_reason(answer.body):
        error.metadata = {**error.metadata, "upstream_reason": named}
    return error


def _words(body: bytes) -> str:
    """The service's own words; those of a sampler may lie one object deeper."""
    inner = _object(body).get("error")
    if isinstance(inner, dict) and isinstance(inner.get("message"), str):
        return cut(inner["message"])
    return detail(body)


def failed_operation(
    backend: str, operation: str, operation_id: str, body: Mapping[str, Any]
) -> GatewayError:
    """Work that the service took and that failed there: `{"error", "error_class"}`."""
    named = str(body.get("error_class") or "")
    kind, reason = Kind.OUTCOME_UNKNOWN, ErrorReason.ERROR_REASON_BACKEND_FAILED
    if any(part in named for part in _CALLERS):
        kind, reason = Kind.INVALID, ErrorReason.ERROR_REASON_BACKEND_REFUSED
    words = cut(str(body.get("error") or "without a word"))
    error = failure(
        backend,
        operation,
        f"failed: {f'{named}: ' if named else ''}{words}",
        kind=kind,
        reason=reason,
        request_id=operation_id,
    )
    if named:
        error.metadata = {**error.metadata, "error_class": named}
    return error
