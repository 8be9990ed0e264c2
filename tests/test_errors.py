"""The taxonomy of failures: what each kind means, and what callers get to see."""

from __future__ import annotations

import asyncio

import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from tinkergate.errors import (
    MAX_MESSAGE_CHARS,
    MAX_VIOLATIONS,
    GatewayError,
    Kind,
    Violation,
    cancelled,
    invalid,
    invalid_field,
    unsupported,
)
from tinkergate.v1 import ErrorReason, FailureCategory, OperationError

USER = FailureCategory.FAILURE_CATEGORY_USER
SERVER = FailureCategory.FAILURE_CATEGORY_SERVER
UNKNOWN = FailureCategory.FAILURE_CATEGORY_UNKNOWN
INTERNAL = ErrorReason.ERROR_REASON_INTERNAL


@pytest.mark.parametrize(
    ("kind", "code", "category", "retryable"),
    [
        (Kind.INVALID, "INVALID_ARGUMENT", USER, False),
        (Kind.UNAUTHENTICATED, "UNAUTHENTICATED", USER, False),
        (Kind.DENIED, "PERMISSION_DENIED", USER, False),
        (Kind.NOT_FOUND, "NOT_FOUND", USER, False),
        (Kind.CONFLICT, "ALREADY_EXISTS", USER, False),
        (Kind.PRECONDITION, "FAILED_PRECONDITION", USER, False),
        (Kind.EXHAUSTED, "RESOURCE_EXHAUSTED", SERVER, True),
        (Kind.UNSUPPORTED, "UNIMPLEMENTED", USER, False),
        (Kind.UNAVAILABLE, "UNAVAILABLE", SERVER, True),
        (Kind.OUTCOME_UNKNOWN, "UNKNOWN", UNKNOWN, False),
        (Kind.CANCELLED, "CANCELLED", USER, False),
        (Kind.DEADLINE, "DEADLINE_EXCEEDED", SERVER, True),
        (Kind.INTERNAL, "INTERNAL", SERVER, False),
    ],
)
def test_what_each_kind_means(
    kind: Kind, code: str, category: FailureCategory.ValueType, retryable: bool
) -> None:
    error = GatewayError(kind, INTERNAL, "words").to_operation_error()
    assert code_pb2.Code.Name(error.code) == code
    assert error.category == category
    assert error.retryable is retryable


def test_every_kind_is_told_apart_by_its_code() -> None:
    codes = [GatewayError(kind, INTERNAL, "").code for kind in Kind]
    assert len(set(codes)) == len(codes) == len(Kind)


def test_an_operation_tells_all_of_it() -> None:
    error = GatewayError(
        Kind.EXHAUSTED,
        ErrorReason.ERROR_REASON_QUEUE_FULL,
        "the queue is full",
        backend="local",
        retry_after=1.25,
        metadata={"queued": "1024"},
    )
    expected = OperationError(
        code=code_pb2.RESOURCE_EXHAUSTED,
        message="the queue is full",
        reason=ErrorReason.ERROR_REASON_QUEUE_FULL,
        category=SERVER,
        backend="local",
        retryable=True,
        metadata={"queued": "1024"},
    )
    expected.retry_delay.seconds = 1
    expected.retry_delay.nanos = 250_000_000
    assert error.to_operation_error() == expected


def test_without_a_delay_none_is_told() -> None:
    error = GatewayError(Kind.UNAVAILABLE, INTERNAL, "gone").to_operation_error()
    assert not error.HasField("retry_delay")


@given(st.text(st.characters(codec=None), max_size=40))
def test_any_words_can_be_told(text: str) -> None:
    """Lone surrogates too: they are in the names of files that are not UTF-8."""
    error = GatewayError(Kind.INTERNAL, INTERNAL, text)
    assert OperationError.FromString(error.to_operation_error().SerializeToString())
    if text.isprintable():
        assert error.message == text


def test_long_words_are_cut() -> None:
    error = GatewayError(Kind.INTERNAL, INTERNAL, "x" * (MAX_MESSAGE_CHARS + 1))
    assert error.message == "x" * (MAX_MESSAGE_CHARS - 1) + "…"
    assert GatewayError(Kind.INTERNAL, INTERNAL, error.message).message == error.message


def test_it_is_an_exception_with_the_words() -> None:
    error = GatewayError(Kind.INTERNAL, INTERNAL, "it broke")
    assert str(error) == "it broke"
    assert error.args == ("it broke",)
    with pytest.raises(GatewayError, match=r"^it broke$") as caught:
        raise error
    assert caught.value is error


async def test_it_goes_through_futures() -> None:
    """asyncio and logging put exceptions into sets and compare them: an error is itself only."""
    error = GatewayError(Kind.INTERNAL, INTERNAL, "it broke")
    assert error in {error}
    assert error != GatewayError(Kind.INTERNAL, INTERNAL, "it broke")
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    with pytest.raises(GatewayError) as caught:
        await future
    assert caught.value is error


def test_an_invalid_request_names_the_first_violations() -> None:
    violations = [Violation(f"data[{i}]", "is 0; must be positive") for i in range(40)]
    error = invalid(iter(violations))
    assert error.kind is Kind.INVALID
    assert error.reason == ErrorReason.ERROR_REASON_INVALID_FIELD
    assert error.violations == tuple(violations[:MAX_VIOLATIONS])
    assert error.message.startswith(
        "data[0]: is 0; must be positive; data[1]: is 0; must be positive"
    )


def test_an_invalid_field() -> None:
    error = invalid_field("num_samples", "is -1; must be 0 or more")
    assert error.message == "num_samples: is -1; must be 0 or more"
    assert error.violations == (Violation("num_samples", "is -1; must be 0 or more"),)


def test_what_a_backend_does_not_do() -> None:
    error = unsupported("image chunks", "local")
    assert error.message == "backend 'local' does not support image chunks"
    assert error.kind is Kind.UNSUPPORTED
    assert error.reason == ErrorReason.ERROR_REASON_UNSUPPORTED
    assert error.backend == "local"
    assert error.metadata == {"feature": "image chunks"}


def test_cancelled_work() -> None:
    assert cancelled().kind is Kind.CANCELLED
    assert cancelled().reason == ErrorReason.ERROR_REASON_CANCELLED
    assert str(cancelled()) == "cancelled by the caller"
    assert str(cancelled("the session ended")) == "the session ended"
