"""Which refused requests take their turn in a model's order all the same.

The SDKs number their requests before they send them, and what comes after one that was refused
would wait for it. So such a request takes its turn, and fails in it.
"""

from __future__ import annotations

from tinkergate.errors import ErrorReason, GatewayError, Kind

_NO_TURN_KINDS = frozenset(
    {
        Kind.UNAUTHENTICATED,
        Kind.DENIED,
        Kind.EXHAUSTED,
        Kind.UNAVAILABLE,
        Kind.OUTCOME_UNKNOWN,
        Kind.CANCELLED,
        Kind.DEADLINE,
        Kind.INTERNAL,
    }
)
_NO_TURN_REASONS = frozenset(
    {
        ErrorReason.ERROR_REASON_SESSION_NOT_FOUND,
        ErrorReason.ERROR_REASON_SESSION_ENDED,
        ErrorReason.ERROR_REASON_MODEL_NOT_FOUND,
        ErrorReason.ERROR_REASON_MODEL_NOT_READY,
        ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT,
        ErrorReason.ERROR_REASON_SEQUENCE_GAP,
        ErrorReason.ERROR_REASON_SEQUENCE_PASSED,
    }
)
"""Failures that have nothing to do with what the request asks for: the same request may be taken
later, or the model takes none at all."""


def takes_turn(error: GatewayError) -> bool:
    """Whether the failure is of the request itself, which will not be sent again."""
    if error.reason == ErrorReason.ERROR_REASON_TOO_LARGE:
        return True
    return error.kind not in _NO_TURN_KINDS and error.reason not in _NO_TURN_REASONS
