"""The order of one model's operations.

A turn comes in with a seq_id or without. With one it runs strictly by it: turns that come early
are parked until those before them are there, and when one of those stays away for too long the
parked ones fail and the order goes on after them. Without one it runs after all that has been
released so far. Turns are handed to the backend one after the other, as many unfinished ones at a
time as the backend allows; a turn that fails makes way for the next.

Nothing here polls: turns are handed over by a task that lives as long as there is something to
hand over, and results arrive as callbacks of futures.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from tinkergate.backends.base import OnStart
from tinkergate.core.admission import Admission, queue_full
from tinkergate.core.faults import as_gateway_error
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import GatewayError, Kind, cancelled, invalid_field
from tinkergate.v1 import ErrorReason

_log = logging.getLogger(__name__)


class _Stage(Enum):
    PARKED = auto()
    READY = auto()
    SUBMITTING = auto()
    IN_FLIGHT = auto()
    DONE = auto()


Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Work(Protocol[Result_co]):
    """Work that was handed over; `backends.base.Submission` is such."""

    @property
    def result(self) -> Awaitable[Result_co]:
        """What comes out."""

    @property
    def cancel(self) -> Callable[[], bool]:
        """Asks that it take no effect. False if that is out of the question."""


class Turn(ABC, Generic[Result]):
    """One operation as the sequencer sees it. `succeeded` or `failed` is called exactly once, as
    the last of all calls."""

    def __init__(self, seq_id: int | None, size: int) -> None:
        """`size` is what the request weighs in memory, in bytes."""
        self.seq_id = seq_id
        self.size = size
        self.stage = _Stage.READY
        self.has_started = False
        self.cancel_wanted = False
        self.work: Work[Result] | None = None

    @abstractmethod
    async def begin(self, on_start: OnStart) -> Work[Result]:
        """Hand the work to the backend; returns when its place there is fixed."""

    @property
    def parked(self) -> bool:
        """Whether it waits for earlier ones to arrive."""
        return self.stage is _Stage.PARKED

    @abstractmethod
    def released(self) -> None:
        """It was parked, and now waits for its turn only."""

    @abstractmethod
    def started(self) -> None:
        """Work on it has begun."""

    @abstractmethod
    def succeeded(self, result: Result) -> None:
        """It is done."""

    @abstractmethod
    def failed(self, error: GatewayError) -> None:
        """It has failed or was cancelled."""


class Sequencer:
    """Puts the turns of one model in order."""

    def __init__(
        self, model_id: str, depth: int, settings: CoreSettings, admission: Admission
    ) -> None:
        """`depth` is how many turns the backend takes before the first is done. Turns may be
        placed at once; they are handed over after `open`."""
        self._model_id = model_id
        self._depth = max(1, depth)
        self._settings = settings
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._is_open = False
        self._next_seq = 1
        self._parked: dict[int, Turn[Any] | None] = {}
        """Early turns by seq_id; None where one was cancelled and its turn is to be skipped."""
        self._ready: deque[Turn[Any]] = deque()
        self._busy: dict[Turn[Any], None] = {}
        """Turns that are being submitted or are in flight, in order."""
        self._hand_over_task: asyncio.Task[None] | None = None
        self._last_arrival = 0.0
        self._gap_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def next_seq(self) -> int:
        """The seq_id that is released next."""
        return self._next_seq

    @property
    def waiting(self) -> int:
        """How many turns have not been handed over."""
        return len(self._parked) + len(self._ready)

    def open(self) -> None:
        """The model is ready: begin to hand over."""
        self._is_open = True
        self._wake()

    def place(self, turn: Turn[Any]) -> None:
        """Give a turn its place. Raises, and takes nothing, if its seq_id is passed or too far
        ahead, or if there is no room."""
        seq_id = turn.seq_id
        early = seq_id is not None and seq_id > self._next_seq
        if seq_id is not None:
            self._check_seq(seq_id)
        # One place is kept for the turn that the parked ones wait for.
        limit = self._settings.max_queued_operations - early
        if self.waiting >= limit:
            raise queue_full(
                f"{self.waiting} operations of model {self._model_id!r} are waiting, and no more "
                f"than {limit} {'early ones ' if early else ''}may",
                self._settings.queue_retry_delay,
            )
        self._admission.take(turn.size, parked=early)
        self._idle.clear()
        self._last_arrival = self._loop.time()
        if seq_id is None:
            self._ready.append(turn)
        elif early:
            turn.stage = _Stage.PARKED
            self._parked[seq_id] = turn
        else:
            self._ready.append(turn)
            self._next_seq += 1
            self._release_parked()
        self._watch_gap()
        self._wake()

    def place_last(self, turn: Turn[Any]) -> None:
        """Give a turn the place after all that can still run; no other must be placed after it.
        Parked turns fail: what they wait for cannot come any more."""
        self._fail_parked("the model was unloaded before")
        self._admission.take(turn.size, parked=False)
        self._idle.clear()
        self._ready.append(turn)
        self._wake()

    def _check_seq(self, seq_id: int) -> None:
        if seq_id < self._next_seq or seq_id in self._parked:
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_SEQUENCE_PASSED,
                f"seq_id {seq_id} of model {self._model_id!r} is passed; the next one is "
                f"{self._next_seq}",
                metadata={"next_seq_id": str(self._next_seq)},
            )
        if seq_id > self._next_seq + self._settings.max_seq_ahead:
            raise invalid_field(
                "seq_id",
                f"is {seq_id}; the next one is {self._next_seq}, and at most "
                f"{self._settings.max_seq_ahead} ahead of it are taken",
            )

    def _release_parked(self) -> None:
        while self._next_seq in self._parked:
            turn = self._parked.pop(self._next_seq)
            self._next_seq += 1
            if turn is not None:
                turn.stage = _Stage.READY
                self._ready.append(turn)
                turn.released()

    def _watch_gap(self) -> None:
        """Have a timer running while turns are parked, and only then."""
        if not self._parked:
            if self._gap_timer is not None:
                self._gap_timer.cancel()
                self._gap_timer = None
        elif self._gap_timer is None:
            due = self._last_arrival + self._settings.gap_timeout
            self._gap_timer = self._loop.call_at(due, self._gap_is_due)

    def _gap_is_due(self) -> None:
        """Time is up, unless something arrived since the timer was set."""
        self._gap_timer = None
        if self._loop.time() - self._last_arrival >= self._settings.gap_timeout:
            self._fail_parked(
                f"seq_id {self._next_seq} did not arrive within {self._settings.gap_timeout} s"
            )
        self._watch_gap()

    def _fail_parked(self, why: str) -> None:
        """Fail all parked turns and go on after them."""
        for turn in self._take_parked():
            error = GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_SEQUENCE_GAP,
                f"{why}, and the operation with seq_id {turn.seq_id} had to come after it; the "
                f"next seq_id is {self._next_seq}",
                metadata={"next_seq_id": str(self._next_seq)},
            )
            self._fail(turn, error)
        self._note_idle()

    def fail_parked(self, error: GatewayError) -> None:
        """Fail all parked turns with `error`: what they wait for will not be taken any more."""
        for turn in self._take_parked():
            self._fail(turn, error)
        self._note_idle()

    def _take_parked(self) -> list[Turn[Any]]:
        """The parked turns in order; the order goes on after them."""
        parked, self._parked = sorted(self._parked.items()), {}
        if parked:
            self._next_seq = parked[-1][0] + 1
        self._watch_gap()
        return [turn for _, turn in parked if turn is not None]

    def cancel(self, turn: Turn[Any]) -> bool:
        """Ask that a turn take no effect. False if that is out of the question; after True it is
        certain once the turn is done."""
        if turn.stage is _Stage.PARKED:
            assert turn.seq_id is not None
            self._parked[turn.seq_id] = None
            self._fail(turn, cancelled())
        elif turn.stage is _Stage.READY:
            self._ready.remove(turn)
            self._fail(turn, cancelled())
            self._note_idle()
        elif turn.stage is _Stage.SUBMITTING:
            turn.cancel_wanted = True
        elif turn.stage is _Stage.IN_FLIGHT:
            return self._cancel_work(turn)
        else:
            return False
        return True

    def _cancel_work(self, turn: Turn[Any]) -> bool:
        assert turn.work is not None
        try:
            return turn.work.cancel()
        except Exception:
            _log.exception("cancelling an operation of %s failed", self._model_id)
            return False

    def abandon(self, error: GatewayError, *, stop_running: bool = False) -> None:
        """Fail all turns that wait with `error`, and cancel those that the backend has taken but
        not started. What runs goes on, unless it is to be stopped too. No turn must be placed
        after this."""
        self.fail_parked(error)
        ready, self._ready = self._ready, deque()
        for turn in ready:
            self._fail(turn, error)
        for turn in list(self._busy):
            if stop_running or not turn.has_started:
                self.cancel(turn)
        self._note_idle()

    async def idle(self) -> None:
        """Wait until every turn is done."""
        await self._idle.wait()

    def _wake(self) -> None:
        if (
            self._hand_over_task is None
            and self._is_open
            and self._ready
            and len(self._busy) < self._depth
        ):
            self._hand_over_task = self._loop.create_task(self._hand_over())

    async def _hand_over(self) -> None:
        """Hand turns over, strictly one after the other, while the backend takes them."""
        try:
            while self._ready and len(self._busy) < self._depth:
                turn = self._ready.popleft()
                turn.stage = _Stage.SUBMITTING
                self._busy[turn] = None
                await self._submit(turn)
        finally:
            self._hand_over_task = None
            self._note_idle()

    async def _submit(self, turn: Turn[Any]) -> None:
        try:
            turn.work = await turn.begin(partial(self._started, turn))
            future = asyncio.ensure_future(turn.work.result)
        except BaseException as error:
            del self._busy[turn]
            if isinstance(error, asyncio.CancelledError):
                self._fail(turn, cancelled("cancelled while it was being submitted"))
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
            else:
                self._fail(turn, as_gateway_error(error, "submitting an operation"))
            return
        turn.stage = _Stage.IN_FLIGHT
        future.add_done_callback(partial(self._settled, turn))
        if turn.cancel_wanted:
            self._cancel_work(turn)

    def _started(self, turn: Turn[Any]) -> None:
        if turn.stage is not _Stage.DONE and not turn.has_started:
            turn.has_started = True
            turn.started()

    def _settled(self, turn: Turn[Any], future: asyncio.Future[Any]) -> None:
        """A turn's result is there."""
        del self._busy[turn]
        if future.cancelled():
            self._fail(turn, cancelled("cancelled by the backend"))
        elif (error := future.exception()) is not None:
            self._fail(turn, as_gateway_error(error, "running an operation"))
        else:
            try:
                turn.succeeded(future.result())
            except Exception as fault:
                self._fail(turn, as_gateway_error(fault, "recording a result"))
            else:
                self._leave(turn)
        self._wake()
        self._note_idle()

    def _fail(self, turn: Turn[Any], error: GatewayError) -> None:
        self._leave(turn)
        turn.failed(error)

    def _leave(self, turn: Turn[Any]) -> None:
        turn.stage = _Stage.DONE
        self._admission.give_back(turn.size)

    def _note_idle(self) -> None:
        if not (self._ready or self._parked or self._busy or self._hand_over_task):
            self._idle.set()
