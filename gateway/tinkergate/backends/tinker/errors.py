"""What the service answers when it does not do what it was asked, as GatewayErrors (wire sections
1.5 and 6.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.http import Answer

MAX_DETAIL = 600
"""How many characters of the service's own words an error repeats."""

MAX_RETRY_AFTER = 60.0
"""A longer Retry-After is not believed, as the official clients do not."""

_KINDS: Mapping[int, tuple[Kind, ErrorReason.ValueType]] = {
    400: (Kind.INVALID, ErrorReason.ERROR_REASON_INVALID_FIELD),
    # The key is the gateway's own: its callers can do nothing about it.
    401: (Kind.INTERNAL, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE),
    402: (Kind.EXHAUSTED, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE),
    403: (Kind.DENIED, ErrorReason.ERROR_REASON_DENIED),
    404: (Kind.NOT_FOUND, ErrorReason.ERROR_REASON_BACKEND_REFUSED),
    409: (Kind.CONFLICT, ErrorReason.ERROR_REASON_BACKEND_REFUSED),
    413: (Kind.INVALID, ErrorReason.ERROR_REASON_TOO_LARGE),
    422: (Kind.INVALID, ErrorReason.ERROR_REASON_INVALID_FIELD),
    429: (Kind.EXHAUSTED, ErrorReason.ERROR_REASON_QUEUE_FULL),
    501: (Kind.UNSUPPORTED, ErrorReason.ERROR_REASON_UNSUPPORTED),
}
_CATEGORIES: Mapping[str, tuple[Kind, ErrorReason.ValueType]] = {
    "user": (Kind.INVALID, ErrorReason.ERROR_REASON_BACKEND_REFUSED),
    "server": (Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_FAILED),
}


def status_error(
    backend: str, operation: str, answer: Answer, request_id: str = ""
) -> GatewayError:
    """An answer of a status that is an error. `request_id` is the service's id of the work, where
    it has one."""
    default = (Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE)
    kind, reason = _KINDS.get(answer.status, default)
    words = detail(answer.body)
    told = f"answered {answer.status}" + (f": {words}" if words else "")
    if answer.status == 401:
        told = f"does not take the gateway's key ({told})"
    elif answer.status == 402:
        told = f"asks for payment ({told})"
    return failure(
        backend,
        operation,
        told,
        kind=kind,
        reason=reason,
        request_id=request_id or answer.headers.get("x-request-id", ""),
        retry_after=retry_after(answer.headers),
        status=answer.status,
    )


def failed_future(
    backend: str, operation: str, request_id: str, body: Mapping[str, Any]
) -> GatewayError:
    """Work that the service took and that failed there: `{"error", "category"}`."""
    category = str(body.get("category") or "unknown").lower()
    kind, reason = _CATEGORIES.get(
        category, (Kind.OUTCOME_UNKNOWN, ErrorReason.ERROR_REASON_BACKEND_FAILED)
    )
    words = _cut(str(body["error"]))
    return failure(
        backend, operation, f"failed: {words}", kind=kind, reason=reason, request_id=request_id
    )


def outcome_unknown(
    backend: str, operation: str, why: str, request_id: str = "", look: str = ""
) -> GatewayError:
    """Work that may or may not have been done. `look` says how to find out or go on."""
    return failure(
        backend,
        operation,
        f"may or may not have been done: {why}" + (f"; {look}" if look else ""),
        kind=Kind.OUTCOME_UNKNOWN,
        reason=ErrorReason.ERROR_REASON_OUTCOME_UNKNOWN,
        request_id=request_id,
    )


def unreachable(backend: str, operation: str, why: str, request_id: str = "") -> GatewayError:
    """The service cannot be reached, or makes no sense."""
    return failure(backend, operation, why, request_id=request_id)


def failure(
    backend: str,
    operation: str,
    told: str,
    *,
    kind: Kind = Kind.UNAVAILABLE,
    reason: ErrorReason.ValueType = ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
    request_id: str = "",
    retry_after: float | None = None,
    status: int = 0,
) -> GatewayError:
    """An error that names backend, operation and the service's id of the work."""
    metadata = {"operation": operation}
    if request_id:
        metadata["upstream_request_id"] = request_id
    if status:
        metadata["upstream_status"] = str(status)
    where = f" (upstream request {request_id})" if request_id else ""
    return GatewayError(
        kind,
        reason,
        f"backend {backend!r}: {operation}{where} {told}",
        backend=backend,
        retry_after=retry_after,
        metadata=metadata,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How many seconds the service asks to wait, if it does and they are to be believed. Dates are
    not read: clocks differ."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if 0 < seconds <= MAX_RETRY_AFTER:
            return seconds
    return None


def detail(body: bytes) -> str:
    """The service's own words in the body of an error: `detail`, `error` or `message` of an object,
    else nothing. Other text may be a page of a proxy."""
    try:
        value = read_json(body)
    except GatewayError:
        return ""
    if not isinstance(value, dict):
        return ""
    for name in ("detail", "error", "message"):
        if words := value.get(name):
            return _cut(str(words))
    return ""


def _cut(words: str) -> str:
    return words if len(words) <= MAX_DETAIL else f"{words[: MAX_DETAIL - 1]}…"
