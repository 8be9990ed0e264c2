"""The engine thread: order, fairness, cancelling, shutting down."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from tinkergate.engine.scheduler import Queue, Scheduler, Work
from tinkergate.errors import GatewayError, Kind

WAIT = 30.0
"""Seconds after which a test gives up; nothing here takes long."""


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    yield scheduler
    scheduler.close()


class Gate:
    """Holds the engine thread in a step until the test opens it."""

    def __init__(self, queue: Queue) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()
        self.handle = queue.call(self._hold)
        assert self._entered.wait(WAIT)

    def _hold(self) -> None:
        self._entered.set()
        assert self._open.wait(WAIT)

    def open(self) -> None:
        self._open.set()
        self.handle.future.result(WAIT)


def steps(count: int, note: Callable[[int], object]) -> Callable[[], Work[str]]:
    def work() -> Work[str]:
        for index in range(count):
            note(index)
            yield None
        return "done"

    return work


def test_results_and_errors_reach_their_own_future(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")

    def fail() -> None:
        raise ValueError("broken")

    first, second, third = queue.call(lambda: 1), queue.call(fail), queue.call(lambda: 3)
    assert first.future.result(WAIT) == 1
    with pytest.raises(ValueError, match="broken"):
        second.future.result(WAIT)
    assert third.future.result(WAIT) == 3


def test_a_queue_keeps_its_order(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    seen: list[tuple[int, int]] = []
    gate = Gate(queue)
    handles = [
        queue.submit(steps(3, lambda step, job=job: seen.append((job, step)))) for job in range(4)
    ]
    gate.open()
    assert [handle.future.result(WAIT) for handle in handles] == ["done"] * 4
    assert seen == [(job, step) for job in range(4) for step in range(3)]


def test_a_short_operation_passes_a_long_one_of_another_lane(scheduler: Scheduler) -> None:
    """The long work ends only after the short one has run: had the lane with the long work been
    served first to its end, neither would come back."""
    long, short = Queue(scheduler, "long"), Queue(scheduler, "short")
    done = threading.Event()

    def endless() -> Work[str]:
        while not done.is_set():
            yield None
        return "ended"

    running = long.submit(endless)
    assert short.submit(steps(5, lambda _: None)).future.result(WAIT) == "done"
    done.set()
    assert running.future.result(WAIT) == "ended"


def test_on_start_is_called_once_when_the_turn_comes(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    gate = Gate(queue)
    started: list[str] = []
    handle = queue.submit(steps(3, lambda _: None), on_start=lambda: started.append("x"))
    assert started == []
    gate.open()
    handle.future.result(WAIT)
    assert started == ["x"]


def test_cancelled_before_its_turn_is_removed(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    gate = Gate(queue)
    ran: list[int] = []
    handle = queue.submit(steps(1, ran.append))
    after = queue.call(lambda: "after")
    assert handle.cancel()
    with pytest.raises(GatewayError) as caught:
        handle.future.result(0)
    assert caught.value.kind is Kind.CANCELLED
    assert not handle.cancel()
    gate.open()
    assert after.future.result(WAIT) == "after"
    assert ran == []


def test_cancelled_while_running_closes_the_generator(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    begun = threading.Event()
    closed = threading.Event()

    def work() -> Work[None]:
        try:
            while True:
                begun.set()
                yield None
        finally:
            closed.set()

    handle = queue.submit(work)
    assert begun.wait(WAIT)
    assert handle.cancel()
    with pytest.raises(GatewayError) as caught:
        handle.future.result(WAIT)
    assert caught.value.kind is Kind.CANCELLED
    assert closed.is_set()
    assert queue.call(lambda: "next").future.result(WAIT) == "next"


def test_what_must_not_stop_half_way_refuses_to_be_cancelled(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    gate = Gate(queue)
    assert not gate.handle.cancel()
    gate.open()
    assert not gate.handle.cancel()


def test_the_future_itself_cannot_be_cancelled(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    gate = Gate(queue)
    handle = queue.call(lambda: 5)
    assert not handle.future.cancel()
    gate.open()
    assert handle.future.result(WAIT) == 5


def test_waiting_for_a_future_leaves_the_thread_to_others(scheduler: Scheduler) -> None:
    queue, other = Queue(scheduler, "q"), Queue(scheduler, "other")
    outside: Future[str] = Future()

    def work() -> Work[str]:
        yield outside
        return outside.result()

    handle = queue.submit(work)
    behind = queue.call(lambda: "behind")
    assert other.call(lambda: "other").future.result(WAIT) == "other"
    # The queue was woken by the second submission, but its head still waits.
    assert not handle.future.done()
    assert not behind.future.done()
    outside.set_result("outside")
    assert handle.future.result(WAIT) == "outside"
    assert behind.future.result(WAIT) == "behind"


def test_closing_ends_what_is_not_done(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    begun, closed = threading.Event(), threading.Event()

    def work() -> Work[None]:
        try:
            while True:
                begun.set()
                yield None
        finally:
            closed.set()

    running, waiting = queue.submit(work), queue.call(lambda: None)
    assert begun.wait(WAIT)
    scheduler.close()
    for handle in (running, waiting):
        with pytest.raises(GatewayError) as caught:
            handle.future.result(0)
        assert caught.value.kind is Kind.UNAVAILABLE
    assert closed.is_set()
    with pytest.raises(GatewayError):
        queue.call(lambda: None)
    with pytest.raises(GatewayError):
        Queue(scheduler, "late")


def test_a_lane_that_slept_has_not_saved_up_time(scheduler: Scheduler) -> None:
    """Lane a works long before b is first woken; a must still get turns beside b."""
    a, b = Queue(scheduler, "a"), Queue(scheduler, "b")
    a.submit(steps(2000, lambda _: sum(range(500)))).future.result(WAIT)
    done = threading.Event()

    def endless() -> Work[str]:
        while not done.is_set():
            yield None
        return "ended"

    running = b.submit(endless)
    assert a.submit(steps(50, lambda _: None)).future.result(WAIT) == "done"
    done.set()
    assert running.future.result(WAIT) == "ended"


def test_a_failing_step_of_a_lane_harms_no_other(scheduler: Scheduler) -> None:
    class Broken:
        steps = 0

        def step(self) -> bool:
            self.steps += 1
            raise RuntimeError("a fault of the lane")

        def fail(self, error: BaseException) -> None:
            raise RuntimeError("again") from error

        def abandon(self, error: GatewayError) -> None:
            raise RuntimeError("again") from error

    broken = Broken()
    scheduler.add(broken)
    scheduler.wake(broken)
    assert Queue(scheduler, "q").call(lambda: 7).future.result(WAIT) == 7
    assert broken.steps == 1  # one that cannot let go of its work is not tried for ever


def test_a_lane_whose_step_failed_lets_go_of_its_work_and_goes_on(scheduler: Scheduler) -> None:
    class Broken(Queue):
        faults = 1

        def step(self) -> bool:
            if self.faults:
                self.faults -= 1
                raise RuntimeError("a fault of the lane")
            return super().step()

    queue = Broken(scheduler, "q")
    with pytest.raises(RuntimeError, match="a fault of the lane"):
        queue.call(lambda: 1).future.result(WAIT)
    assert queue.call(lambda: 2).future.result(WAIT) == 2


def test_a_closed_queue_fails_what_comes(scheduler: Scheduler) -> None:
    queue = Queue(scheduler, "q")
    gone = GatewayError(Kind.NOT_FOUND, 0, "gone")
    handles = [queue.call(lambda: queue.close(gone)), queue.call(lambda: None)]
    with pytest.raises(GatewayError, match="gone"):
        handles[1].future.result(WAIT)
    with pytest.raises(GatewayError, match="gone"):
        queue.call(lambda: None)
    handles[0].future.result(WAIT)
