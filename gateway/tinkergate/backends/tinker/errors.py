"""What the service answers when it does not do what it was asked, as GatewayErrors (wire sections
1.5 and 6.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinkergate.backends.failures import cut, detail, failure, retry_after
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
    words = cut(str(body["error"]))
    return failure(
        backend, operation, f"failed: {words}", kind=kind, reason=reason, request_id=request_id
    )
