"""How a model's requests reach the gateway: in order, each exactly once.

A request that the gateway rejects takes no seq_id, so the next id is known only once the answer
is there: one thread a model sends request after request, and the caller goes on meanwhile. While
no gateway answers, the same request is sent again under the same seq_id, which the gateway answers
with the same operation.
"""

from __future__ import annotations

import heapq
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

import grpc

from tinkergate.v1 import (
    CancelOperationRequest,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    GetModelRequest,
    LoadStateRequest,
    Operation,
    OptimStepRequest,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    UnloadModelRequest,
    VlaTrainStepRequest,
)
from tinkergate_client._calls import client_closed
from tinkergate_client._connection import Connection
from tinkergate_client._errors import (
    AccessDenied,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    TinkergateError,
    Unsupported,
)

ModelRequest = (
    ForwardRequest
    | ForwardBackwardRequest
    | OptimStepRequest
    | SaveStateRequest
    | LoadStateRequest
    | SaveWeightsForSamplerRequest
    | SaveWeightsExternalRequest
    | ForwardBackwardReverseKlRequest
    | VlaTrainStepRequest
    | UnloadModelRequest
)
Request = TypeVar("Request", bound=ModelRequest)
# In quotes: only grpc's stubs make the class generic.
Rpc: TypeAlias = "grpc.UnaryUnaryMultiCallable[Request, Operation]"

# Answers after which it is certain that the request took no place in the order.
_REJECTIONS = (
    AccessDenied,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unsupported,
)
_MAX_WAITING = 1024


class Submission:
    """One call of the caller's: a request, or the chunks of a large one, accepted together."""

    def __init__(self, rpc: Rpc[Request], requests: Sequence[Request]) -> None:
        self._rpc = rpc
        self.requests = requests
        self.accepted: Future[Sequence[Operation]] = Future()
        """The operations, in the order of the requests."""

    def send(self, connection: Connection, index: int, *, wait_for_room: bool) -> Operation:
        """Send one of the requests. Raises TinkergateError."""
        return connection.call(self._rpc, self.requests[index], wait_for_room=wait_for_room)


class Submitter:
    """Sends what is submitted for one model, in order."""

    def __init__(self, connection: Connection, model_id: str, next_seq_id: int) -> None:
        self._connection = connection
        self._model_id = model_id
        self._next_seq_id = next_seq_id
        self._returned_ids: list[int] = []  # a heap of ids below the next that nothing took
        self._left_holes = False
        self._place_known = True
        # Bounded, so that a program that is faster than the gateway waits instead of piling up.
        self._waiting: queue.Queue[Submission | None] = queue.Queue(_MAX_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, rpc: Rpc[Request], requests: Sequence[Request]) -> Submission:
        """Put a call behind those before it. Raises GatewayUnreachable once closed."""
        submission = Submission(rpc, requests)
        # The lock makes the order of calls the order of the queue, for callers on many threads.
        with self._lock:
            if self._closed:
                raise client_closed()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"tinkergate-submit-{self._model_id}", daemon=True
                )
                self._thread.start()
            self._waiting.put(submission)
        return submission

    @property
    def is_used(self) -> bool:
        """Whether anything was submitted, and more may be."""
        return self._thread is not None and not self._closed

    def close(self) -> None:
        """Take nothing more; what waits fails."""
        with self._lock:
            self._closed = True
            running = self._thread is not None
        if running:
            self._fail_waiting(client_closed())
            self._waiting.put(None)

    def _run(self) -> None:
        while (submission := self._waiting.get()) is not None:
            if not submission.accepted.set_running_or_notify_cancel():
                continue
            try:
                operations = self._send(submission)
            except Exception as error:
                submission.accepted.set_exception(error)
                if not self._place_known:
                    # What waits was meant to follow what is lost.
                    self._fail_waiting(error)
            else:
                submission.accepted.set_result(operations)

    def _send(self, submission: Submission) -> list[Operation]:
        if not self._place_known:
            self._find_place()
        try:
            return self._send_once(submission)
        except FailedPrecondition as error:
            # The gateway waits for a hole only for a while, then goes on after it.
            if error.reason != "SEQUENCE_PASSED" or not self._left_holes:
                raise
        self._find_place()
        return self._send_once(submission)

    def _find_place(self) -> None:
        """Ask the gateway which seq_id comes next."""
        request = GetModelRequest(model_id=self._model_id)
        model = self._connection.call(self._connection.models.GetModel, request).model
        self._next_seq_id = model.next_seq_id
        self._returned_ids = []
        self._left_holes = False
        self._place_known = True

    def _send_once(self, submission: Submission) -> list[Operation]:
        for request in submission.requests:
            if not isinstance(request, UnloadModelRequest):
                request.seq_id = self._take_id()
        operations: dict[int, Operation] = {}
        try:
            self._send_first_last(submission, operations)
        except BaseException as error:
            if isinstance(error, _REJECTIONS):
                self._withdraw(submission, operations)
            else:
                self._place_known = False
            raise
        return [operations[index] for index in range(len(submission.requests))]

    def _send_first_last(self, submission: Submission, operations: dict[int, Operation]) -> None:
        """Send the chunks of a call, the first one last: until it arrives the others are parked, so
        that a call of which one chunk is rejected can be withdrawn as a whole."""
        for index in range(1, len(submission.requests)):
            try:
                operations[index] = submission.send(
                    self._connection, index, wait_for_room=0 in operations
                )
            except Overloaded as error:
                if error.reason != "QUEUE_FULL" or 0 in operations:
                    raise
                # More than the queue holds: only work that runs makes room.
                operations[0] = submission.send(self._connection, 0, wait_for_room=True)
                operations[index] = submission.send(self._connection, index, wait_for_room=True)
        if 0 not in operations:
            operations[0] = submission.send(self._connection, 0, wait_for_room=True)

    def _withdraw(self, submission: Submission, operations: dict[int, Operation]) -> None:
        """Cancel the accepted chunks, and take back the ids of the others."""
        for index, request in enumerate(submission.requests):
            if index in operations:
                self._left_holes = True
                name = operations[index].name
                try:
                    self._connection.call(
                        self._connection.operations.CancelOperation,
                        CancelOperationRequest(name=name),
                    )
                except TinkergateError:
                    self._place_known = False
            elif not isinstance(request, UnloadModelRequest):
                heapq.heappush(self._returned_ids, request.seq_id)

    def _take_id(self) -> int:
        if self._returned_ids:
            return heapq.heappop(self._returned_ids)
        self._next_seq_id += 1
        return self._next_seq_id - 1

    def _fail_waiting(self, error: Exception) -> None:
        while True:
            try:
                submission = self._waiting.get_nowait()
            except queue.Empty:
                return
            if submission is None:
                self._waiting.put(None)
                return
            if submission.accepted.set_running_or_notify_cancel():
                submission.accepted.set_exception(error)
