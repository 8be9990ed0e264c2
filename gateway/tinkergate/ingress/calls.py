"""What the doors have in common in telling of calls: their ids, their failures, their log lines."""

from __future__ import annotations

import itertools
import logging
import secrets

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ErrorReason, FailureCategory

MAX_REQUEST_ID_CHARS = 128

_REASON_PREFIX = "ERROR_REASON_"
_RUN_ID = secrets.token_hex(4)
_count = itertools.count(1)


def request_id(sent: str | None) -> str:
    """The caller's `x-request-id`, by which it finds its calls in our log; else a new one: a number
    that this process drew at its start, and a count."""
    if sent and len(sent) <= MAX_REQUEST_ID_CHARS and sent.isprintable():
        return sent
    return f"{_RUN_ID}{next(_count):08x}"


def reason_name(reason: ErrorReason.ValueType) -> str:
    """The reason without the prefix of the enum, as programs are told it."""
    return ErrorReason.Name(reason).removeprefix(_REASON_PREFIX)


def internal_error(error_id: str) -> GatewayError:
    """A fault of ours: the caller learns nothing but where to look."""
    return GatewayError(
        Kind.INTERNAL,
        ErrorReason.ERROR_REASON_INTERNAL,
        f"internal error {error_id}: the gateway's log has the details under this id",
        metadata={"error_id": error_id},
    )


def refusal_facts(error: GatewayError) -> tuple[int, dict[str, object]]:
    """The level and the facts of the log line of a call that fails. The error's words are logged
    only where the fault is not the caller's: else they may quote the request."""
    facts: dict[str, object] = {"reason": reason_name(error.reason)}
    if error.backend:
        facts["backend"] = error.backend
    if error.kind.value.category != FailureCategory.FAILURE_CATEGORY_USER:
        facts["message"] = error.message
        return logging.WARNING, facts
    if error.violations:
        facts["field"] = error.violations[0].field
    return logging.INFO, facts
