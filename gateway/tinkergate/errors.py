"""The one taxonomy of failures.

Everything that goes wrong inside the gateway is a `GatewayError`; every ingress renders it once
(gRPC status with google.rpc details, a failed operation, a REST body). Backends raise nothing
else. A message is written for people and may be shown to them; whatever else is raised is a
fault of ours, and callers only learn an id by which the log can be searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from google.rpc import code_pb2

from tinkergate.v1 import ErrorReason, FailureCategory, OperationError

__all__ = [
    "MAX_MESSAGE_CHARS",
    "MAX_VIOLATIONS",
    "ErrorReason",  # the engine raises errors too, and takes nothing else from the messages
    "GatewayError",
    "Kind",
    "Violation",
    "cancelled",
    "invalid",
    "invalid_field",
    "unsupported",
]

MAX_MESSAGE_CHARS = 2000
"""Longer messages are cut: a gRPC trailer has a hard limit of 16 KiB."""

MAX_VIOLATIONS = 16
"""How many field violations of one request are told."""


class _KindFacts(NamedTuple):
    code: int
    category: FailureCategory.ValueType
    retryable: bool


class Kind(Enum):
    """What sort of failure it is. The value holds the google.rpc.Code, whose fault it is, and
    whether the same request may succeed later."""

    INVALID = _KindFacts(code_pb2.INVALID_ARGUMENT, FailureCategory.FAILURE_CATEGORY_USER, False)
    UNAUTHENTICATED = _KindFacts(
        code_pb2.UNAUTHENTICATED, FailureCategory.FAILURE_CATEGORY_USER, False
    )
    DENIED = _KindFacts(code_pb2.PERMISSION_DENIED, FailureCategory.FAILURE_CATEGORY_USER, False)
    NOT_FOUND = _KindFacts(code_pb2.NOT_FOUND, FailureCategory.FAILURE_CATEGORY_USER, False)
    CONFLICT = _KindFacts(code_pb2.ALREADY_EXISTS, FailureCategory.FAILURE_CATEGORY_USER, False)
    PRECONDITION = _KindFacts(
        code_pb2.FAILED_PRECONDITION, FailureCategory.FAILURE_CATEGORY_USER, False
    )
    EXHAUSTED = _KindFacts(
        code_pb2.RESOURCE_EXHAUSTED, FailureCategory.FAILURE_CATEGORY_SERVER, True
    )
    UNSUPPORTED = _KindFacts(code_pb2.UNIMPLEMENTED, FailureCategory.FAILURE_CATEGORY_USER, False)
    UNAVAILABLE = _KindFacts(code_pb2.UNAVAILABLE, FailureCategory.FAILURE_CATEGORY_SERVER, True)
    OUTCOME_UNKNOWN = _KindFacts(code_pb2.UNKNOWN, FailureCategory.FAILURE_CATEGORY_UNKNOWN, False)
    CANCELLED = _KindFacts(code_pb2.CANCELLED, FailureCategory.FAILURE_CATEGORY_USER, False)
    DEADLINE = _KindFacts(code_pb2.DEADLINE_EXCEEDED, FailureCategory.FAILURE_CATEGORY_SERVER, True)
    INTERNAL = _KindFacts(code_pb2.INTERNAL, FailureCategory.FAILURE_CATEGORY_SERVER, False)


class Violation(NamedTuple):
    """One broken rule of a request."""

    field: str
    """The field's path, such as `data[3].loss_fn_inputs["weights"]`."""
    description: str
    """The value and the rule that it breaks."""


@dataclass(eq=False)  # an error is itself, not what it says: it must stay hashable
class GatewayError(Exception):
    """A failure that may be shown to the caller."""

    kind: Kind
    reason: ErrorReason.ValueType
    message: str
    backend: str = ""
    """The backend that failed or refused; empty if it was the gateway."""
    retry_after: float | None = None
    """Seconds after which a retry makes sense."""
    violations: tuple[Violation, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Further facts by name, for programs."""

    def __post_init__(self) -> None:
        # The words may come from the operating system, with surrogates that no message can hold.
        self.message = self.message.encode(errors="replace").decode()
        if len(self.message) > MAX_MESSAGE_CHARS:
            self.message = self.message[: MAX_MESSAGE_CHARS - 1] + "…"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    @property
    def code(self) -> int:
        """The google.rpc.Code of the failure."""
        return self.kind.value.code

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind.value.retryable

    def to_operation_error(self) -> OperationError:
        """The failure as the error of an operation."""
        error = OperationError(
            code=self.code,
            message=self.message,
            reason=self.reason,
            category=self.kind.value.category,
            backend=self.backend,
            retryable=self.retryable,
            metadata=dict(self.metadata),
        )
        if self.retry_after is not None:
            error.retry_delay.FromNanoseconds(round(self.retry_after * 1e9))
        return error


def invalid(violations: Iterable[Violation]) -> GatewayError:
    """A request that breaks rules. The message tells the first few of them."""
    told = tuple(violations)[:MAX_VIOLATIONS]
    message = "; ".join(f"{field}: {description}" for field, description in told)
    return GatewayError(
        Kind.INVALID, ErrorReason.ERROR_REASON_INVALID_FIELD, message, violations=told
    )


def invalid_field(field_path: str, description: str) -> GatewayError:
    """A request of which one field breaks a rule."""
    return invalid([Violation(field_path, description)])


def unsupported(feature: str, backend: str) -> GatewayError:
    """Something that the backend does not do. `feature` is a phrase such as "image chunks"."""
    return GatewayError(
        Kind.UNSUPPORTED,
        ErrorReason.ERROR_REASON_UNSUPPORTED,
        f"backend {backend!r} does not support {feature}",
        backend=backend,
        metadata={"feature": feature},
    )


def cancelled(message: str = "cancelled by the caller") -> GatewayError:
    """Work that ended because the caller asked for it."""
    return GatewayError(Kind.CANCELLED, ErrorReason.ERROR_REASON_CANCELLED, message)
