"""Failures as the SDK of this dialect reads them (wire section 3).

On trainers and samplers, 400 and 404 mean "still starting", and are repeated for an hour: bad input
is 422, and what is gone for good 410. What a repeat can mend is 502 on trainers, whose calls are
told apart by their keys, and 503 with Retry-After on samplers. 429 is never repeated, so it is
never used. A refusal that has the two headers of the serverless gateway is final whatever its
status is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from starlette.responses import Response

from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.calls import reason_name
from tinkergate.ingress.loops_rest.ids import in_own_words
from tinkergate.ingress.tinker_rest.errors import json_response

CODE = "loops_code"
STATUS = "loops_status"
"""The metadata of an error that is marked as the serverless gateway's own: its code, and the status
if that is not the one of its kind."""

_SOURCE = "06"

_GONE = frozenset(
    {
        ErrorReason.ERROR_REASON_SESSION_ENDED,
        ErrorReason.ERROR_REASON_SESSION_NOT_FOUND,
        ErrorReason.ERROR_REASON_MODEL_NOT_READY,
        ErrorReason.ERROR_REASON_MODEL_NOT_FOUND,
    }
)
_RESULT_GONE = frozenset(
    {ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND, ErrorReason.ERROR_REASON_RESULT_EXPIRED}
)
_CONTROL: dict[Kind, int] = {
    Kind.INVALID: 422,
    Kind.UNAUTHENTICATED: 401,
    Kind.DENIED: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.PRECONDITION: 409,
    Kind.EXHAUSTED: 503,
    Kind.UNSUPPORTED: 501,
    Kind.UNAVAILABLE: 503,
    Kind.OUTCOME_UNKNOWN: 500,
    Kind.CANCELLED: 409,
    Kind.DEADLINE: 504,
    Kind.INTERNAL: 500,
}
_TRAINER = _CONTROL | {
    Kind.NOT_FOUND: 422,
    Kind.PRECONDITION: 422,
    Kind.UNSUPPORTED: 422,
    Kind.EXHAUSTED: 502,
    Kind.UNAVAILABLE: 502,
}
_SAMPLER = _TRAINER | {Kind.EXHAUSTED: 503, Kind.UNAVAILABLE: 503}

Render = Callable[[GatewayError, str], Response]


def marked(error: GatewayError, code: str, status: int | None = None) -> GatewayError:
    """The error as a refusal of the serverless gateway, which no client repeats."""
    told = {**error.metadata, CODE: code}
    if status is not None:
        told[STATUS] = str(status)
    error.metadata = told
    return error


def refusal(code: str, message: str, status: int = 400) -> GatewayError:
    """A request that does not say rightly whose it is."""
    denied = GatewayError(Kind.DENIED, ErrorReason.ERROR_REASON_DENIED, message)
    return marked(denied, code, status)


def control_error(error: GatewayError, request_id: str) -> Response:
    """A failed call of the control plane."""
    status = 413 if error.reason == ErrorReason.ERROR_REASON_TOO_LARGE else _CONTROL[error.kind]
    return _response(error, request_id, status)


def trainer_error(error: GatewayError, request_id: str) -> Response:
    """A failed call to a trainer."""
    if error.reason == ErrorReason.ERROR_REASON_SHUTTING_DOWN:
        # The client knows this one by name.
        return _response(error, request_id, 503)
    return _response(error, request_id, _data_status(error, _TRAINER))


def sampler_error(error: GatewayError, request_id: str) -> Response:
    """A failed call to a sampler."""
    return _response(error, request_id, _data_status(error, _SAMPLER))


def _data_status(error: GatewayError, statuses: dict[Kind, int]) -> int:
    if error.reason == ErrorReason.ERROR_REASON_TOO_LARGE:
        return 413
    if error.reason in _RESULT_GONE:
        return 404
    if error.reason in _GONE:
        return 410
    return statuses[error.kind]


def _response(error: GatewayError, request_id: str, status: int) -> Response:
    details: dict[str, object] = {"reason": reason_name(error.reason)}
    if error.backend:
        details["backend"] = error.backend
    if error.violations:
        details["violations"] = [
            {"field": field, "description": description} for field, description in error.violations
        ]
    headers = {}
    code = error.metadata.get(CODE)
    if error.kind is Kind.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Bearer realm="tinkergate"'
        code = code or "unauthenticated"
    if code is not None:
        status = int(error.metadata.get(STATUS, status))
        headers["x-baseten-error-source"] = _SOURCE
        headers["x-baseten-error-code"] = code
    if error.retry_after is not None and status in (502, 503):
        headers["retry-after"] = str(math.ceil(error.retry_after))
    told = {"detail": in_own_words(error.message), "details": details, "request_id": request_id}
    return json_response(told, status, headers)
