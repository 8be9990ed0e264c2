"""Whatever comes in whatever order: what runs, runs in the canon's order, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tinkergate.backends.base import OnStart
from tinkergate.core.admission import Admission
from tinkergate.core.sequencer import Sequencer, Turn
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ErrorReason


class OpenStore:
    behind = False


@dataclass
class NotedWork:
    result: asyncio.Future[str]
    started: bool = False

    def cancel(self) -> bool:
        if self.started:
            return False
        if not self.result.done():
            self.result.cancel()
        return True


class Ledger:
    """Does the work of one model, a step at a time, and notes what was done in which order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.queue: list[tuple[NotedTurn, NotedWork, OnStart]] = []

    def step(self) -> None:
        if self.queue:
            turn, work, on_start = self.queue.pop(0)
            if not work.result.done():
                work.started = True
                on_start()
                self.done.append(turn.label)
                if turn.breaks:
                    work.result.set_exception(ValueError(turn.label))
                else:
                    work.result.set_result(turn.label)


class NotedTurn(Turn[str]):
    def __init__(
        self, ledger: Ledger, label: str, seq_id: int | None, *, breaks: bool, refused: bool
    ) -> None:
        super().__init__(seq_id, 1)
        self.ledger = ledger
        self.label = label
        self.breaks = breaks
        self.refused = refused
        self.ends: list[str] = []

    async def begin(self, on_start: OnStart) -> NotedWork:
        await asyncio.sleep(0)
        if self.refused:
            raise GatewayError(
                Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE, "refused"
            )
        work = NotedWork(asyncio.get_running_loop().create_future())
        self.ledger.queue.append((self, work, on_start))
        return work

    def released(self) -> None:
        assert not self.ends

    def started(self) -> None:
        assert not self.ends

    def succeeded(self, result: str) -> None:
        assert result == self.label
        self.ends.append("succeeded")

    def failed(self, error: GatewayError) -> None:
        self.ends.append("cancelled" if error.kind is Kind.CANCELLED else "failed")


@dataclass(frozen=True)
class Plan:
    """Turns 1..n in some order of arrival, with cancels and steps of work in between."""

    order: list[int]
    unnumbered: frozenset[int]
    """Arrivals before which one without a seq_id comes in."""
    breaks: frozenset[int]
    refused: frozenset[int]
    actions: list[tuple[str, int]]
    depth: int


@st.composite
def plans(draw: Any) -> Plan:
    count = draw(st.integers(1, 8))
    numbers = st.frozensets(st.integers(1, count))
    return Plan(
        order=draw(st.permutations(range(1, count + 1))),
        unnumbered=draw(numbers),
        breaks=draw(numbers),
        refused=draw(numbers),
        actions=draw(
            st.lists(
                st.tuples(st.sampled_from(["step", "cancel", "spin"]), st.integers(1, count)),
                max_size=30,
            )
        ),
        depth=draw(st.integers(1, 4)),
    )


async def run(plan: Plan) -> None:
    core_settings = CoreSettings()
    admission = Admission(core_settings, OpenStore())  # type: ignore[arg-type]
    sequencer = Sequencer("m", plan.depth, core_settings, admission)
    sequencer.open()
    ledger = Ledger()
    turns: dict[int, NotedTurn] = {}
    cancel_accepted: set[int] = set()
    expected: list[str] = []
    loose: list[NotedTurn] = []
    actions = list(plan.actions)

    async def act() -> None:
        if not actions:
            return
        what, number = actions.pop(0)
        if what == "step":
            ledger.step()
        elif what == "spin":
            await asyncio.sleep(0)
        elif number in turns and sequencer.cancel(turns[number]):
            cancel_accepted.add(number)

    def arrive(turn: NotedTurn) -> None:
        before = sequencer.next_seq
        sequencer.place(turn)
        if turn.seq_id is None:
            expected.append(turn.label)
        expected.extend(str(n) for n in range(before, sequencer.next_seq))

    for number in plan.order:
        if number in plan.unnumbered:
            loose.append(NotedTurn(ledger, f"x{number}", None, breaks=False, refused=False))
            arrive(loose[-1])
            await act()
        turns[number] = NotedTurn(
            ledger,
            str(number),
            number,
            breaks=number in plan.breaks,
            refused=number in plan.refused,
        )
        arrive(turns[number])
        await act()
        await act()
    while actions:
        await act()
    idle = asyncio.ensure_future(sequencer.idle())
    while not idle.done():
        ledger.step()
        await asyncio.sleep(0)

    everything = [*turns.values(), *loose]
    assert all(len(turn.ends) == 1 for turn in everything)
    # Exactly those that were neither refused nor cancelled have run, in the canon's order.
    ends = {turn.label: turn.ends[0] for turn in everything}
    ran = [
        label
        for label in expected
        if ends[label] == "succeeded" or (ends[label] == "failed" and label in ledger.done)
    ]
    assert ledger.done == ran
    assert sorted(expected) == sorted(ends)
    for number, turn in turns.items():
        if number not in cancel_accepted:
            wanted = "failed" if turn.refused or turn.breaks else "succeeded"
            assert turn.ends == [wanted]
        elif turn.ends == ["cancelled"]:
            assert turn.label not in ledger.done
    assert sequencer.next_seq == len(turns) + 1
    assert sequencer.waiting == 0
    assert admission.queued_bytes == 0


@given(plans())
@settings(max_examples=150, deadline=None)
def test_the_order_is_always_the_canon(plan: Plan) -> None:
    asyncio.run(run(plan))


def sequencer_with(**fields: Any) -> tuple[Sequencer, Ledger, Admission]:
    core_settings = CoreSettings(**fields)
    admission = Admission(core_settings, OpenStore())  # type: ignore[arg-type]
    return Sequencer("m", 2, core_settings, admission), Ledger(), admission


def turn(ledger: Ledger, seq_id: int | None) -> NotedTurn:
    return NotedTurn(ledger, str(seq_id), seq_id, breaks=False, refused=False)


def refusal(sequencer: Sequencer, placed: NotedTurn) -> GatewayError:
    try:
        sequencer.place(placed)
    except GatewayError as error:
        return error
    raise AssertionError("the turn was taken")


async def test_parked_turns_leave_room_for_the_one_they_wait_for() -> None:
    sequencer, ledger, _ = sequencer_with(max_queued_operations=3)
    for seq_id in (2, 3):
        sequencer.place(turn(ledger, seq_id))
    assert refusal(sequencer, turn(ledger, 4)).kind is Kind.EXHAUSTED
    sequencer.place(turn(ledger, 1))
    assert sequencer.next_seq == 4


async def test_parked_bytes_leave_room_for_the_one_they_wait_for() -> None:
    sequencer, ledger, admission = sequencer_with(max_queued_bytes=3, max_message_bytes=1)
    for seq_id in (2, 3):
        sequencer.place(turn(ledger, seq_id))
    assert refusal(sequencer, turn(ledger, 4)).kind is Kind.EXHAUSTED
    sequencer.place(turn(ledger, 1))
    assert admission.queued_bytes == 3


async def test_what_is_too_far_ahead_is_refused() -> None:
    sequencer, ledger, _ = sequencer_with(max_seq_ahead=10)
    assert refusal(sequencer, turn(ledger, 12)).violations[0].field == "seq_id"
    sequencer.place(turn(ledger, 11))


async def test_a_passed_or_parked_seq_id_is_refused() -> None:
    sequencer, ledger, admission = sequencer_with()
    sequencer.place(turn(ledger, 1))
    sequencer.place(turn(ledger, 3))
    for seq_id in (1, 3):
        error = refusal(sequencer, turn(ledger, seq_id))
        assert error.reason == ErrorReason.ERROR_REASON_SEQUENCE_PASSED
        assert error.metadata["next_seq_id"] == "2"
    assert admission.queued_bytes == 2


async def test_nothing_is_handed_over_before_the_model_is_ready(until: Any) -> None:
    sequencer, ledger, _ = sequencer_with()
    first = turn(ledger, 1)
    sequencer.place(first)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ledger.queue == []
    sequencer.open()
    await until(lambda: len(ledger.queue) == 1)
    ledger.step()
    await sequencer.idle()
    assert first.ends == ["succeeded"]


async def test_abandoning_fails_what_waits_and_lets_go_on_what_runs(until: Any) -> None:
    sequencer, ledger, admission = sequencer_with()
    sequencer.open()
    turns = {n: turn(ledger, n) for n in (1, 2, 3, 5)}
    for each in turns.values():
        sequencer.place(each)
    await until(lambda: len(ledger.queue) == 2)
    _, _, on_start = ledger.queue[0]
    on_start()
    sequencer.abandon(GatewayError(Kind.PRECONDITION, ErrorReason.ERROR_REASON_SESSION_ENDED, "x"))
    while ledger.queue:
        ledger.step()
    await sequencer.idle()
    assert {n: t.ends for n, t in turns.items()} == {
        1: ["succeeded"],
        2: ["cancelled"],
        3: ["failed"],
        5: ["failed"],
    }
    assert admission.queued_bytes == 0


class HandTurnedLoop:
    """An event loop's clock and timers, turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers.append((when, callback))
        return asyncio.get_running_loop().call_later(3600, callback)

    def go_to(self, now: float) -> None:
        self.now = now
        due = [callback for when, callback in self.timers if when <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for callback in due:
            callback()


async def test_the_gap_is_counted_from_the_last_arrival() -> None:
    sequencer, ledger, _ = sequencer_with(gap_timeout=10)
    loop = HandTurnedLoop()
    sequencer._loop = loop  # type: ignore[assignment]
    second, third = turn(ledger, 2), turn(ledger, 3)
    sequencer.place(second)
    loop.go_to(8)
    sequencer.place(third)
    loop.go_to(17)
    assert second.ends == third.ends == []
    loop.go_to(18)
    assert second.ends == third.ends == ["failed"]
    assert sequencer.next_seq == 4
    assert loop.timers == []
    await sequencer.idle()
