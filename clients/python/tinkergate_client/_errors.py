"""What can go wrong, as one tree:

TinkergateError
├── GatewayUnreachable     no gateway answered
├── InvalidRequest         the request breaks a rule; `violations` name the fields
├── AccessDenied           no API key, a wrong one, or one that may not do this
├── NotFound               there is no such session, model, sampler, checkpoint or operation
├── Conflict               the name or identity is taken
├── FailedPrecondition     things are not in the state that the request needs
├── Overloaded             a queue is full or a bound is passed
├── Unsupported            the backend does not do this
└── OperationFailed        the gateway accepted the work, and the work failed
    └── OperationCancelled

What fits none of the classes is a plain TinkergateError; `code` and `reason` tell it apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from tinkergate.v1 import ErrorReason, Operation

_DETAILS = "grpc-status-details-bin"
_STATUS_OF_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Violation(NamedTuple):
    """One broken rule of a request."""

    field: str
    """The field's path, such as `data[3].loss_fn_inputs["weights"]`."""
    description: str
    """The value and the rule that it breaks."""


class TinkergateError(Exception):
    """A call, or the work that it asked for, failed.

    Attributes:
        message: What went wrong, for people.
        code: The gRPC status code.
        reason: What went wrong, for programs: a name of `ErrorReason` without its prefix, such as
            "CHECKPOINT_NOT_FOUND". Empty if no gateway said so.
        violations: The broken rules of a request.
        retry_after: Seconds after which a retry makes sense, if the gateway said so.
        backend: The backend that failed or refused; empty if it was the gateway.
        metadata: Further facts by name.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
        backend: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.violations = violations
        self.retry_after = retry_after
        self.backend = backend
        self.metadata = dict(metadata or {})


class GatewayUnreachable(TinkergateError):
    """No gateway answered: none runs there, the connection broke, or this client is closed. What
    was sent before may have been done."""


class InvalidRequest(TinkergateError):
    """The request breaks a rule, and nothing of it was done."""


class AccessDenied(TinkergateError):
    """No API key was sent, a wrong one, or one that may not do this."""


class NotFound(TinkergateError):
    """There is no such session, model, sampler, checkpoint or operation."""


class Conflict(TinkergateError):
    """The name is taken, or the same identity was used before with another request."""


class FailedPrecondition(TinkergateError):
    """Things are not in the state that the request needs, such as a session that has ended."""


class Overloaded(TinkergateError):
    """A queue is full, or a bound of the gateway's is passed."""


class Unsupported(TinkergateError):
    """The backend does not do this."""


class OperationFailed(TinkergateError):
    """The gateway accepted the work, and the work failed.

    Attributes:
        operation: The operation's name.
        retryable: Whether the same work, submitted anew, may succeed.
    """

    operation: str = ""
    retryable: bool = False


class OperationCancelled(OperationFailed):
    """The work was cancelled before it took effect."""


_CLASS_OF_CODE: dict[grpc.StatusCode, type[TinkergateError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}
# Without the gateway's own reason these come from the connection, not from a gateway.
_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def error_from_call(call: grpc.RpcError) -> TinkergateError:
    """The failure of a call, with what the gateway sent in `grpc-status-details-bin`."""
    code = call.code()
    message = call.details() or code.name
    reason = ""
    backend = ""
    metadata: dict[str, str] = {}
    violations: tuple[Violation, ...] = ()
    retry_after = None
    for detail in _details(call):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            reason, metadata = info.reason, dict(info.metadata)
            backend = metadata.get("backend", "")
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after = delay.ToNanoseconds() / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            violations = tuple(
                Violation(violation.field, violation.description)
                for violation in error_details_pb2.BadRequest.FromString(
                    detail.value
                ).field_violations
            )
    kind = _CLASS_OF_CODE.get(code, TinkergateError)
    if not reason and code in _NO_ANSWER:
        kind = GatewayUnreachable
    return kind(
        message,
        code=code,
        reason=reason,
        violations=violations,
        retry_after=retry_after,
        backend=backend,
        metadata=metadata,
    )


def _details(call: grpc.RpcError) -> list[Any]:
    # grpc's stubs type the items of the metadata as one.
    trailer: Any = call.trailing_metadata() or ()
    for key, value in trailer:
        if key == _DETAILS and isinstance(value, bytes):
            return list(status_pb2.Status.FromString(value).details)
    return []


def error_from_operation(operation: Operation) -> OperationFailed:
    """The failure of an operation whose result is an error."""
    failure = operation.error
    code = _STATUS_OF_NUMBER.get(failure.code, grpc.StatusCode.UNKNOWN)
    kind = OperationCancelled if code is grpc.StatusCode.CANCELLED else OperationFailed
    error = kind(
        failure.message,
        code=code,
        reason=_reason_name(failure.reason),
        retry_after=(
            failure.retry_delay.ToNanoseconds() / 1e9 if failure.HasField("retry_delay") else None
        ),
        backend=failure.backend,
        metadata=failure.metadata,
    )
    error.operation = operation.name
    error.retryable = failure.retryable
    return error


def _reason_name(reason: int) -> str:
    """A newer gateway may know reasons that this client does not."""
    value = ErrorReason.DESCRIPTOR.values_by_number.get(reason)
    return value.name.removeprefix("ERROR_REASON_") if value else f"UNKNOWN_{reason}"


def result_expired(operation: Operation) -> OperationFailed:
    """The operation was done, and its result is no longer kept."""
    error = OperationFailed(
        f"operation {operation.name} is done, but its result is no longer kept",
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="RESULT_EXPIRED",
    )
    error.operation = operation.name
    return error
