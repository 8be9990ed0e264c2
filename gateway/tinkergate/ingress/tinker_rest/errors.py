"""Failures as the SDKs of this dialect read them (wire sections 1.5 and 14.1).

A status says what the client does next, which is not always what HTTP would say: it calls again,
for minutes, on 408, 409, 429 and from 500 on, and gives up on everything else. So what no repeat
can mend is never told by one of those. Bodies are `{"detail": words, ...}`, which is what the SDKs
print; facts for programs stand beside it. A top-level "error" is never used: it would mean a
failed future.
"""

from __future__ import annotations

import math

from starlette.responses import Response

from tinkergate.dialects.tinker.json_text import write_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.calls import reason_name

_BY_REASON: dict[int, int] = {
    ErrorReason.ERROR_REASON_TOO_LARGE: 413,
    ErrorReason.ERROR_REASON_SESSION_ENDED: 410,
    ErrorReason.ERROR_REASON_RESULT_EXPIRED: 410,
    # A repeat cannot help, and 409 would be repeated.
    ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT: 400,
}
_BY_KIND: dict[Kind, int] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.DENIED: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.PRECONDITION: 400,
    Kind.EXHAUSTED: 429,
    # 501 would be repeated.
    Kind.UNSUPPORTED: 400,
    Kind.UNAVAILABLE: 503,
    Kind.OUTCOME_UNKNOWN: 424,
    Kind.CANCELLED: 400,
    Kind.DEADLINE: 504,
    Kind.INTERNAL: 500,
}


def status_of(error: GatewayError) -> int:
    """The HTTP status of a failed call."""
    return _BY_REASON.get(error.reason) or _BY_KIND[error.kind]


def error_response(error: GatewayError, request_id: str) -> Response:
    """A failed call's answer."""
    told: dict[str, object] = {
        "detail": error.message,
        "reason": reason_name(error.reason),
        "request_id": request_id,
    }
    if error.backend:
        told["backend"] = error.backend
    if error.violations:
        told["violations"] = [
            {"field": field, "description": description} for field, description in error.violations
        ]
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after * 1000))
    if error.kind is Kind.UNAUTHENTICATED:
        scheme = 'Bearer realm="tinkergate"'
        if error.metadata.get("token") == "invalid":
            # On this sign a client exchanges its key anew and calls again.
            scheme += ', error="invalid_token"'
        headers["www-authenticate"] = scheme
    return json_response(told, status_of(error), headers)


def json_response(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer in JSON."""
    return Response(write_json(value), status, headers, media_type="application/json")
