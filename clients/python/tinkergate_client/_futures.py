"""Results that arrive later."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, Self, TypeVar

import grpc

from tinkergate.v1 import (
    CancelOperationRequest,
    Operation,
    OperationState,
    WaitOperationRequest,
    WaitOperationResponse,
)
from tinkergate_client._connection import Connection
from tinkergate_client._errors import OperationCancelled, error_from_operation, result_expired

Raw = TypeVar("Raw")
Result = TypeVar("Result", covariant=True)

_FINISHED = (
    OperationState.OPERATION_STATE_SUCCEEDED,
    OperationState.OPERATION_STATE_FAILED,
    OperationState.OPERATION_STATE_CANCELLED,
)
_ANSWER_MARGIN = 30.0


class ResultFuture(ABC, Generic[Raw, Result]):
    """A result that arrives later: wait for it with `result()`, or `await` it."""

    @abstractmethod
    def _arrival(self) -> Future[Raw]:
        """What the result is read from, from now on listened for."""

    @abstractmethod
    def _read(self, raw: Raw) -> Result:
        """The result, or its failure raised."""

    @abstractmethod
    def cancel(self) -> bool:
        """Ask that the work take no effect; whether that came true."""

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result. Raises TinkergateError if there is none, and TimeoutError after
        `timeout` seconds, which ends nothing: ask again."""
        try:
            return self._read(self._arrival().result(timeout))
        except CancelledError:
            raise _cancelled() from None

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait, and answer the failure; None if there is a result. Raises TimeoutError."""
        try:
            self.result(timeout)
        except TimeoutError:
            raise
        except Exception as error:
            return error
        return None

    def done(self) -> bool:
        """Whether the result, or the failure, has arrived here. The first call begins to listen
        for it."""
        return self._arrival().done()

    def add_done_callback(self, callback: Callable[[Self], object]) -> None:
        """Call `callback` with this future once it is done, at once if it is. It must not block:
        it is called on the thread that all answers arrive on."""
        self._arrival().add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, Result]:
        # Shielded: a cancelled awaiter is no reason to stop listening for the others.
        try:
            raw = yield from asyncio.shield(asyncio.wrap_future(self._arrival())).__await__()
        except asyncio.CancelledError:
            if self._arrival().cancelled():
                raise _cancelled() from None
            raise
        return self._read(raw)


class CallFuture(ResultFuture[Raw, Result]):
    """The result of one call."""

    def __init__(self, call: Future[Raw], read: Callable[[Raw], Result]) -> None:
        self._call = call
        self._convert = read

    def _arrival(self) -> Future[Raw]:
        return self._call

    def _read(self, raw: Raw) -> Result:
        return self._convert(raw)

    def cancel(self) -> bool:
        """Give the call up, which stops its work; whether it was not done before."""
        return self._call.cancel()


class OperationFuture(ResultFuture[Sequence[Operation], Result]):
    """The result of an operation, or of the several that a large call was split into.

    The gateway keeps the result for a while: waiting goes on by the operation's name when the
    connection breaks, and any other client may wait for it too (`Client.operation`).
    """

    def __init__(
        self,
        connection: Connection,
        accepted: Future[Sequence[Operation]],
        read: Callable[[Sequence[Operation]], Result],
    ) -> None:
        self._connection = connection
        self._accepted = accepted
        self._convert = read
        self._lock = threading.Lock()
        self._finished: Future[Sequence[Operation]] | None = None

    @property
    def name(self) -> str:
        """The operation's name; the first one's if the call was split. Waits until the gateway has
        accepted the work. Raises TinkergateError if it did not."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all operations of the call, in order. Waits and raises as `name` does."""
        return tuple(operation.name for operation in self.accepted())

    def accepted(self, timeout: float | None = None) -> Sequence[Operation]:
        """Wait until the gateway has accepted the work, and answer the operations as they were
        then. Raises TinkergateError if it did not, and TimeoutError."""
        try:
            return self._accepted.result(timeout)
        except CancelledError:
            raise _cancelled() from None

    def cancel(self) -> bool:
        """Ask that the work take no effect; whether all of it was cancelled. Work that the gateway
        is already doing is cancelled only if that leaves nothing half-done."""
        if self._accepted.cancel():
            return True
        answers = [
            self._connection.call(
                self._connection.operations.CancelOperation, CancelOperationRequest(name=name)
            )
            for name in self.names
        ]
        cancelled = OperationState.OPERATION_STATE_CANCELLED
        return all(answer.operation.state == cancelled for answer in answers)

    def _read(self, raw: Sequence[Operation]) -> Result:
        for operation in raw:
            if operation.HasField("error"):
                raise error_from_operation(operation)
            if operation.result_expired:
                raise result_expired(operation)
        return self._convert(raw)

    def _arrival(self) -> Future[Sequence[Operation]]:
        with self._lock:
            if self._finished is not None:
                return self._finished
            self._finished = Future()
        self._accepted.add_done_callback(self._follow)
        return self._finished

    def _follow(self, accepted: Future[Sequence[Operation]]) -> None:
        assert self._finished is not None
        if accepted.cancelled():
            self._finished.cancel()
        elif (error := accepted.exception()) is not None:
            self._finished.set_exception(error)
        else:
            _Listener(self._connection, accepted.result(), self._finished).begin()


class _Listener:
    """Waits for operations, asking again by name until all are done."""

    def __init__(
        self,
        connection: Connection,
        operations: Sequence[Operation],
        finished: Future[Sequence[Operation]],
    ) -> None:
        self._connection = connection
        self._operations = list(operations)
        self._finished = finished
        self._missing = len(operations)
        self._lock = threading.Lock()
        # The gateway answers after max_wait at the latest; after that the connection is dead.
        self._timeout = connection.limits.max_wait.ToNanoseconds() / 1e9 + _ANSWER_MARGIN

    def begin(self) -> None:
        for index, operation in enumerate(self._operations):
            self._heard(index, operation)

    def _heard(self, index: int, operation: Operation) -> None:
        if operation.state not in _FINISHED:
            self._ask(index)
            return
        with self._lock:
            self._operations[index] = operation
            self._missing -= 1
            complete = self._missing == 0
        if complete:
            self._finished.set_result(self._operations)

    def _ask(self, index: int) -> None:
        call = self._connection.start(
            self._connection.operations.WaitOperation,
            WaitOperationRequest(name=self._operations[index].name),
            timeout=self._timeout,
        )
        call.add_done_callback(lambda call: self._answered(index, call))

    def _answered(self, index: int, call: Future[WaitOperationResponse]) -> None:
        error = call.exception()
        if error is None:
            self._heard(index, call.result().operation)
            return
        with self._lock:
            first = self._missing > 0
            self._missing = -1  # no other outcome counts any more
        if first:
            self._finished.set_exception(error)


def _cancelled() -> OperationCancelled:
    return OperationCancelled(
        "cancelled before it was done", code=grpc.StatusCode.CANCELLED, reason="CANCELLED"
    )
