"""What is injected where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chain import Chain, Point
from faulty_proxy import Fault, Script, Seen

PAUSED = {
    "tinker": ("forward_backward", "optim_step", "retrieve_future"),
    "loops": ("trainer/forward_backward", "trainer/optim_step", "trainer/operations"),
}
"""Routes at whose second request the upstream stands still for a minute."""


class Injection(NamedTuple):
    """One thing that goes wrong in one run."""

    kind: str
    point: Point
    fault: Fault
    times: int = 1
    """How many requests of the route are mistreated in a row."""
    for_good: bool = False
    """Whether the same happens to every later request for the same path."""
    loses: bool = False
    """Whether the upstream loses its models by it."""

    def script(self, chain: Chain) -> Script:
        """What the proxy is to do."""
        count = 0
        hit = ""

        def script(seen: Seen) -> Fault | None:
            nonlocal count, hit
            if chain.route(seen) != self.point.route:
                return None
            number, count = count, count + 1
            if self.for_good and hit:
                return self.fault if seen.path == hit else None
            if not self.point.number <= number < self.point.number + self.times:
                return None
            hit = seen.path
            return self.fault

        return script


def plan(chain: Chain, points: Sequence[Point], *, every: int, pauses: int) -> Iterator[Injection]:
    """All injections into a run whose requests are `points`; of those only each `every`-th is
    mistreated, and the upstream stands still `pauses` times."""
    loops = chain.dialect == "loops"
    for kind, fault, times in _everywhere(loops):
        for point in points[::every]:
            yield Injection(kind, point, fault, times)
    firsts = [Point(route, 0) for route in dict.fromkeys(point.route for point in points)]
    for first in firsts:
        yield Injection("402", first, Fault("status", 402))
    if loops:
        yield from _loops_only(points, every)
    for first in firsts:
        fault = Fault("run_then_lose", run=chain.restart_upstream())
        yield Injection("upstream killed and restarted", first, fault, loses=True)
    for route in PAUSED["loops" if loops else "tinker"][:pauses]:
        fault = Fault("run_then_lose", run=chain.pause_upstream(60.0))
        yield Injection("upstream stands still for 60 s", Point(route, 1), fault)


def _everywhere(loops: bool) -> Iterator[tuple[str, Fault, int]]:
    """(kind, fault, times) of what is done to every request."""
    yield "cut before it was sent", Fault("refuse"), 1
    yield "answer lost", Fault("lose"), 1
    yield "answer cut in half", Fault("truncate"), 1
    yield "answer is garbage", Fault("garbage"), 1
    yield "held for 2 s", Fault("pause", seconds=2.0), 1
    yield "408", Fault("status", 408), 1
    yield "429", Fault("status", 429, (("retry-after", "1"),)), 1
    yield "500", Fault("status", 500), 1
    yield "503 after it was done", Fault("status_after", 503), 1
    if loops:
        yield "answer lost three times", Fault("lose"), 3
        yield "400 three times (starting)", Fault("status", 400), 3
        yield "404 three times (starting)", Fault("status", 404), 3
        yield "502", Fault("status", 502), 1
        yield "504 after it was done", Fault("status_after", 504), 1
        yield "503 to come again in 1 s", Fault("status", 503, (("retry-after", "1"),)), 1


def _loops_only(points: Sequence[Point], every: int) -> Iterator[Injection]:
    """What only Loops answers."""
    refusal = (("x-baseten-error-source", "06"), ("x-baseten-error-code", "of_the_test"))
    for point in points[::every]:
        yield Injection("400 of the serverless gateway", point, Fault("status", 400, refusal))
    for point in [point for point in points if point.route.endswith("/sample")]:
        yield Injection("408 five times (the gate)", point, Fault("status", 408), times=5)
        busy = Fault("status", 503, (("retry-after", "2"),))
        yield Injection("503 five times (queue full)", point, busy, times=5)
    for point in [point for point in points if point.route.endswith("/operations")][::every]:
        for status in (404, 410, 503):
            kind = f"{status} for good (evicted)"
            yield Injection(kind, point, Fault("status", status), for_good=True)
