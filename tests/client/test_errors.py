"""Failures as they travel: a gRPC server that answers every call with one status."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from tinkergate import v1
from tinkergate_client import (
    AccessDenied,
    Conflict,
    FailedPrecondition,
    GatewayUnreachable,
    InvalidRequest,
    NotFound,
    OperationCancelled,
    OperationFailed,
    Overloaded,
    TinkergateError,
    Unsupported,
    Violation,
    connect,
)
from tinkergate_client._errors import error_from_operation

Refuse = Callable[[Status], str]


@pytest.fixture
def refuse() -> Iterator[Refuse]:
    """Starts servers that answer every call with a status; answers their address."""
    servers: list[grpc.Server] = []

    def start(status: Status) -> str:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort_with_status(rpc_status.to_status(status))
            raise AssertionError

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
                return grpc.unary_unary_rpc_method_handler(answer)

        server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def packed(*details: ErrorInfo | RetryInfo | BadRequest) -> list[Any]:
    result = []
    for detail in details:
        result.append(Any())
        result[-1].Pack(detail)
    return result


def failure(address: str) -> TinkergateError:
    with pytest.raises(TinkergateError) as caught:
        connect(address, timeout=0.5)
    return caught.value


def info(reason: str, **metadata: str) -> ErrorInfo:
    return ErrorInfo(reason=reason, domain="tinkergate", metadata=metadata)


def test_every_detail_is_told(refuse: Refuse) -> None:
    broken = BadRequest(
        field_violations=[BadRequest.FieldViolation(field="data[3]", description="is empty")]
    )
    error = failure(
        refuse(
            Status(
                code=grpc.StatusCode.INVALID_ARGUMENT.value[0],
                message="data[3]: is empty",
                details=packed(
                    info("INVALID_FIELD", backend="local", limit="7"),
                    broken,
                    RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
                ),
            )
        )
    )
    assert type(error) is InvalidRequest
    assert str(error) == error.message == "data[3]: is empty"
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_FIELD"
    assert error.violations == (Violation("data[3]", "is empty"),)
    assert error.backend == "local"
    assert error.metadata == {"backend": "local", "limit": "7"}
    assert error.retry_after == 1.5


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, AccessDenied),
        (grpc.StatusCode.PERMISSION_DENIED, AccessDenied),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, Conflict),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
        (grpc.StatusCode.INTERNAL, TinkergateError),
        # The gateway's own words, not a lost connection.
        (grpc.StatusCode.DEADLINE_EXCEEDED, TinkergateError),
    ],
)
def test_the_code_tells_the_class(
    refuse: Refuse, code: grpc.StatusCode, kind: type[TinkergateError]
) -> None:
    status = Status(code=code.value[0], message="words", details=packed(info("WHATEVER")))
    error = failure(refuse(status))
    assert type(error) is kind
    assert (error.code, error.reason) == (code, "WHATEVER")


def test_a_status_without_details_is_told_too(refuse: Refuse) -> None:
    error = failure(refuse(Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="words")))
    assert type(error) is NotFound
    assert (error.message, error.reason, error.violations) == ("words", "", ())


def test_no_gateway_is_said_clearly() -> None:
    said = "no gateway answered at 127.0.0.1:1 within 0.3 s"
    with pytest.raises(GatewayUnreachable, match=re.escape(said)):
        connect("127.0.0.1:1", timeout=0.3)


def test_a_failed_operation_tells_what_failed() -> None:
    error = error_from_operation(
        v1.Operation(
            name="operations/x",
            error=v1.OperationError(
                code=grpc.StatusCode.INTERNAL.value[0],
                message="out of memory",
                reason=v1.ErrorReason.ERROR_REASON_INTERNAL,
                backend="local",
                retryable=True,
                retry_delay=Duration(seconds=2),
                metadata={"device": "cpu"},
            ),
        )
    )
    assert type(error) is OperationFailed
    assert (error.operation, error.retryable, error.retry_after) == ("operations/x", True, 2)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert (error.backend, error.metadata) == ("local", {"device": "cpu"})


def test_a_cancelled_operation_has_a_class_of_its_own() -> None:
    failed = v1.OperationError(code=grpc.StatusCode.CANCELLED.value[0], message="cancelled")
    assert type(error_from_operation(v1.Operation(error=failed))) is OperationCancelled


def test_a_reason_of_a_newer_gateway_is_no_obstacle() -> None:
    failed = v1.OperationError(code=13, reason=9999)  # type: ignore[arg-type]
    assert error_from_operation(v1.Operation(error=failed)).reason == "UNKNOWN_9999"
