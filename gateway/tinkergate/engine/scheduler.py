"""One thread for all numeric work, shared fairly by short steps.

Work stands in lanes: one queue a model for its training operations, one lane for sampling, one
for scoring. A turn runs one step of the lane that has had the least time among those with
something to do (start-time fair queueing, Goyal, Vin and Chen, 1996), so a long generation stalls
nobody and a large training operation does not starve the samples. Nothing polls: a lane without
work sleeps until it is woken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from tinkergate.errors import ErrorReason, GatewayError, Kind, cancelled

_log = logging.getLogger(__name__)

T = TypeVar("T")

Work = Generator["Future[Any] | None", None, T]
"""Work in steps. `yield None` ends a step; `yield future` ends it too, and the next one runs when
the future is done (work that waits for the disk leaves the thread to others)."""


def shutting_down() -> GatewayError:
    """What work ends with when the engine closes before it is done."""
    return GatewayError(
        Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_SHUTTING_DOWN, "the engine is shutting down"
    )


class Lane(Protocol):
    """Something that has steps to run on the engine thread."""

    def step(self) -> bool:
        """Run one short step. False if there is nothing to do until the lane is woken."""

    def fail(self, error: BaseException) -> None:
        """End everything that is not done with `error`, and go on with what comes: a step has
        raised, and there is no telling which work was at fault."""

    def abandon(self, error: GatewayError) -> None:
        """End everything that is not done with `error`: the last call on the engine thread."""


class Handle(Generic[T]):
    """Work that was submitted: its outcome, and a way to call it off."""

    def __init__(self, cancel: Callable[[Handle[T]], bool]) -> None:
        self.future: Future[T] = Future()
        # From here on Future.cancel() refuses: only `cancel` below ends the work.
        self.future.set_running_or_notify_cancel()
        self._cancel = cancel

    def cancel(self) -> bool:
        """Ask that the work take no effect. False if that is out of the question: it is done, or
        it must not stop half-way. True means that `future` ends with a cancelled error unless
        the work is done first."""
        return not self.future.done() and self._cancel(self)


class Scheduler:
    """The engine thread and the lanes that take turns on it. `wake` may be called anywhere."""

    def __init__(self, name: str = "engine", prepare: Callable[[], None] = lambda: None) -> None:
        """`prepare` is called once, on the engine thread, before its first step."""
        self._prepare = prepare
        self._condition = threading.Condition()
        self._tags: dict[Lane, float] = {}
        """The virtual time at which each lane's next step begins. Ordered by arrival."""
        self._now = 0.0
        """The virtual time: the tag of the last step that was begun. Never falls."""
        self._ready: set[Lane] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, lane: Lane) -> None:
        """Let a lane take part."""
        with self._condition:
            if self._closing:
                raise shutting_down()
            self._tags.setdefault(lane, self._now)

    def remove(self, lane: Lane) -> None:
        """Forget a lane that has nothing left to do."""
        with self._condition:
            self._tags.pop(lane, None)
            self._ready.discard(lane)

    def wake(self, lane: Lane) -> None:
        """Tell that a lane has something to do."""
        with self._condition:
            if self._closing or lane in self._ready or lane not in self._tags:
                return
            # A lane that slept does not save up its time to shut out the others later.
            self._tags[lane] = max(self._tags[lane], self._now)
            self._ready.add(lane)
            self._condition.notify()

    def on_thread(self) -> bool:
        """Whether the caller runs on the engine thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """End after the step that is running. What is not done ends with an error."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if not self.on_thread():
            self._thread.join()

    def _next(self) -> Lane | None:
        """The lane whose turn it is; waits for one. None when closing."""
        with self._condition:
            while not self._ready and not self._closing:
                self._condition.wait()
            if self._closing:
                return None
            lane = min(
                (lane for lane in self._tags if lane in self._ready), key=self._tags.__getitem__
            )
            self._now = self._tags[lane]
            # Taken off before its step, so that a wake during the step is not lost.
            self._ready.discard(lane)
            return lane

    def _failed(self, lane: Lane, error: Exception) -> bool:
        """Have a lane let go of its work. Answers whether to go on with it."""
        try:
            lane.fail(error)
        except Exception:
            _log.exception("%r is left alone", lane)
            return False
        return True

    def _run(self) -> None:
        self._prepare()
        while (lane := self._next()) is not None:
            begin = time.perf_counter()
            try:
                more = lane.step()
            except Exception as error:
                # Lanes give their items' errors to the items, so this is a fault of the lane. The
                # same step again would most likely fail again, and for ever.
                _log.exception("a step of %r failed", lane)
                more = self._failed(lane, error)
            with self._condition:
                if lane in self._tags:
                    self._tags[lane] += time.perf_counter() - begin
                    if more:
                        self._ready.add(lane)
        for lane in list(self._tags):
            try:
                lane.abandon(shutting_down())
            except Exception:
                _log.exception("%r could not be abandoned", lane)


class _Item(Generic[T]):
    """One piece of work in a queue."""

    def __init__(
        self,
        queue: Queue,
        start: Callable[[], Work[T]],
        on_start: Callable[[], None] | None,
        interruptible: bool,
    ) -> None:
        self.handle: Handle[T] = Handle(lambda _: queue._cancel(self))
        self.start = start
        self.on_start = on_start
        self.interruptible = interruptible
        self.running: Work[T] | None = None
        self.awaited: Future[Any] | None = None
        self.cancelled = False


class Queue:
    """A lane whose work runs one after another in the order of submission."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.name = name
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._items: deque[_Item[Any]] = deque()
        self._begun: _Item[Any] | None = None
        """The first item, once its turn has come."""
        self._error: GatewayError | None = None
        scheduler.add(self)

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"

    def submit(
        self,
        start: Callable[[], Work[T]],
        *,
        on_start: Callable[[], None] | None = None,
        interruptible: bool = True,
    ) -> Handle[T]:
        """Put work at the end of the queue. Its place is fixed when this returns.

        `start` makes the generator, on the engine thread when its turn has come; `on_start` is
        called just before. Interruptible work can be cancelled while it runs: its generator is
        closed at the end of a step, and what it has done must then be undone or invisible.
        """
        item = _Item(self, start, on_start, interruptible)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._items.append(item)
        self._scheduler.wake(self)
        return item.handle

    def call(
        self, function: Callable[[], T], *, on_start: Callable[[], None] | None = None
    ) -> Handle[T]:
        """Put a single step at the end of the queue. It cannot be cancelled once it runs."""

        def start() -> Work[T]:
            yield from ()  # makes this a generator
            return function()

        return self.submit(start, on_start=on_start, interruptible=False)

    def close(self, error: GatewayError) -> None:
        """Leave the scheduler. What is still waiting, or comes later, ends with `error`; work of
        the queue itself may call this as its last step."""
        self._scheduler.remove(self)
        with self._lock:
            self._error = error
            waiting = [item for item in self._items if item is not self._begun]
            self._items = deque(item for item in self._items if item is self._begun)
        for item in waiting:
            item.handle.future.set_exception(error)

    def _cancel(self, item: _Item[Any]) -> bool:
        with self._lock:
            if item is self._begun:
                if item.interruptible:
                    item.cancelled = True
                return item.interruptible
            if item not in self._items:
                return False
            self._items.remove(item)
        item.handle.future.set_exception(cancelled())
        return True

    def step(self) -> bool:
        """Run the first item to its next yield."""
        with self._lock:
            if not self._items:
                return False
            item = self._begun = self._items[0]
        if item.awaited is not None and not item.awaited.done():
            return False
        try:
            if item.cancelled:
                if item.running is not None:
                    item.running.close()
                raise cancelled()
            if item.running is None:
                if item.on_start is not None:
                    item.on_start()
                item.running = item.start()
            item.awaited = next(item.running)
        except StopIteration as stop:
            return self._finish(item, result=stop.value)
        except BaseException as error:
            return self._finish(item, error=error)
        if item.awaited is None:
            return True
        item.awaited.add_done_callback(lambda _: self._scheduler.wake(self))
        return False

    def _finish(
        self, item: _Item[Any], *, result: object = None, error: BaseException | None = None
    ) -> bool:
        with self._lock:
            self._items.popleft()
            self._begun = None
            more = bool(self._items)
        if error is None:
            item.handle.future.set_result(result)
        else:
            item.handle.future.set_exception(error)
        return more

    def abandon(self, error: GatewayError) -> None:
        """Close what is running and fail everything, what comes later too."""
        with self._lock:
            self._error = error
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Close what is running and fail everything that there is."""
        with self._lock:
            items = list(self._items)
            self._items.clear()
            self._begun = None
        for item in items:
            if item.running is not None:
                item.running.close()
            item.handle.future.set_exception(error)
