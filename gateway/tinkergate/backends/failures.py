"""What goes wrong at a service, as GatewayErrors that name backend, operation and the service's id
of the work."""

from __future__ import annotations

from collections.abc import Mapping

from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.errors import ErrorReason, GatewayError, Kind

MAX_DETAIL = 600
"""How many characters of the service's own words an error repeats."""

MAX_RETRY_AFTER = 60.0
"""A longer Retry-After is not believed, as the official clients do not."""


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
            return cut(str(words))
    return ""


def cut(words: str) -> str:
    """As many of the service's own words as an error repeats."""
    return words if len(words) <= MAX_DETAIL else f"{words[: MAX_DETAIL - 1]}…"
