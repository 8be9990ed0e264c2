"""Faults of our own: logged whole under an id, told by that id only."""

from __future__ import annotations

import logging
import secrets

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ErrorReason

_log = logging.getLogger(__name__)


def as_gateway_error(error: BaseException, doing: str) -> GatewayError:
    """`error` itself if it may be shown to callers, else an internal error with an id by which the
    log tells the rest. `doing` is a phrase such as "running forward_backward"."""
    if isinstance(error, GatewayError):
        return error
    fault_id = secrets.token_hex(6)
    _log.error("fault %s while %s", fault_id, doing, exc_info=error)
    return GatewayError(
        Kind.INTERNAL,
        ErrorReason.ERROR_REASON_INTERNAL,
        f"internal error while {doing}; the gateway's log has it under {fault_id}",
        metadata={"fault_id": fault_id},
    )
