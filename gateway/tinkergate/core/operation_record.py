"""One operation as the core remembers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from tinkergate.core.clock import set_time
from tinkergate.v1 import (
    Operation,
    OperationError,
    OperationKind,
    OperationState,
    QueueState,
    WaitOperationResponse,
)

RESULTS: Final[dict[int, str]] = {
    OperationKind.OPERATION_KIND_CREATE_MODEL: "create_model",
    OperationKind.OPERATION_KIND_UNLOAD_MODEL: "unload_model",
    OperationKind.OPERATION_KIND_FORWARD: "forward_backward",
    OperationKind.OPERATION_KIND_FORWARD_BACKWARD: "forward_backward",
    OperationKind.OPERATION_KIND_OPTIM_STEP: "optim_step",
    OperationKind.OPERATION_KIND_SAVE_STATE: "save_state",
    OperationKind.OPERATION_KIND_LOAD_STATE: "load_state",
    OperationKind.OPERATION_KIND_SAVE_WEIGHTS_FOR_SAMPLER: "save_weights_for_sampler",
    OperationKind.OPERATION_KIND_SAVE_WEIGHTS_EXTERNAL: "save_weights_external",
    OperationKind.OPERATION_KIND_FORWARD_BACKWARD_REVERSE_KL: "forward_backward",
    OperationKind.OPERATION_KIND_INTERPOLATE_CHECKPOINTS: "interpolate_checkpoints",
    OperationKind.OPERATION_KIND_VLA_TRAIN_STEP: "vla_train_step",
}
"""The field of Operation that holds the result of each kind."""

# Looking an enum's value up by name costs more than all else that is done with it.
PARKED: Final = OperationState.OPERATION_STATE_PARKED
QUEUED: Final = OperationState.OPERATION_STATE_QUEUED
RUNNING: Final = OperationState.OPERATION_STATE_RUNNING
SUCCEEDED: Final = OperationState.OPERATION_STATE_SUCCEEDED
FAILED: Final = OperationState.OPERATION_STATE_FAILED
CANCELLED: Final = OperationState.OPERATION_STATE_CANCELLED
_DONE: Final = frozenset({SUCCEEDED, FAILED, CANCELLED})

Tell = Callable[[], tuple[QueueState.ValueType, str]]
Waiter = asyncio.Future[WaitOperationResponse | None]
"""Is given the operation once it is done."""


class Record:
    """One operation."""

    __slots__ = (
        "_waiters",
        "answer",
        "cancel",
        "create_time",
        "end_time",
        "error",
        "identity",
        "kind",
        "model_id",
        "name",
        "number",
        "queue_state",
        "request_hash",
        "result_bytes",
        "seq_id",
        "start_time",
        "state",
        "stored",
    )

    def __init__(
        self,
        *,
        name: str,
        number: int,
        kind: OperationKind.ValueType,
        model_id: str,
        seq_id: int | None,
        identity: str,
        request_hash: bytes,
        create_time: int,
    ) -> None:
        self.name = name
        self.number = number
        self.kind = kind
        self.model_id = model_id
        self.seq_id = seq_id
        self.identity = identity
        self.request_hash = request_hash
        self.state: OperationState.ValueType = QUEUED
        self.create_time = create_time
        self.start_time: int | None = None
        self.end_time: int | None = None
        self.error: OperationError | None = None
        self.result_bytes = 0
        self.answer: WaitOperationResponse | None = None
        """The operation whole, while its result is in memory. Never changed: all who ask are given
        this same message, so a large result is copied once."""
        self.stored = False
        """Whether the result is to be had from the store."""
        self.cancel: Callable[[], bool] | None = None
        """Asks that the operation take no effect. False if that is out of the question."""
        self.queue_state: Tell | None = None
        """Why it waits, while it does."""
        self._waiters: set[Waiter] | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.state in _DONE

    @property
    def result_expired(self) -> bool:
        """Whether there was a result that is no longer kept."""
        return self.result_bytes > 0 and self.answer is None and not self.stored

    def fill(self, operation: Operation) -> Operation:
        """Write into `operation` what is known, but for the result; answers `operation`."""
        operation.name = self.name
        operation.kind = self.kind
        operation.state = self.state
        operation.model_id = self.model_id
        if self.seq_id is not None:
            operation.seq_id = self.seq_id
        set_time(operation.create_time, self.create_time)
        if self.start_time is not None:
            set_time(operation.start_time, self.start_time)
        if self.end_time is not None:
            set_time(operation.end_time, self.end_time)
        if self.error is not None:
            operation.error.CopyFrom(self.error)
        elif self.result_expired:
            operation.result_expired = True
        elif not self.done and self.queue_state is not None:
            operation.queue_state, operation.queue_state_reason = self.queue_state()
        return operation

    async def ended(self, limit: float) -> WaitOperationResponse | None:
        """Wait until the operation is done, at most `limit` seconds. Answers it as it was when it
        ended; None if it had ended before, or if time runs out."""
        if self.done or limit <= 0:
            return None
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        if self._waiters is None:
            self._waiters = set()
        self._waiters.add(waiter)
        timer = loop.call_later(limit, _give_up, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            if self._waiters is not None:
                self._waiters.discard(waiter)

    def wake(self, answer: WaitOperationResponse) -> None:
        """Give `answer` to all who wait."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(answer)


def _give_up(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)


def set_result(answer: WaitOperationResponse, kind: int, packed: bytes) -> None:
    """Put the packed result of an operation of that kind into `answer`."""
    held: Message = getattr(answer.operation, RESULTS[kind])
    held.MergeFromString(packed)
    held.SetInParent()
