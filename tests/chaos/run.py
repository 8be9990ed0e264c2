"""Faults between two gateways, at every step of a run: nothing is lost, and nothing done twice.

    python tests/chaos/run.py --dialect tinker

A program trains through a gateway whose backend is a second gateway, by way of a proxy that
mistreats one request of each run. The run must end with the weights of an undisturbed run, to the
bit, or stop with one clear error; and then the upstream's weights must be those of some step of
the undisturbed run, with that step's count. Prints what was injected and what came of it, and
exits non-zero if anything was lost, doubled or left unclear.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import program
from faulty_proxy import Fault, FaultyProxy, Seen
from gateway_process import KEYS, Gateway, front_config
from micro_model import write_micro_model

from tinkergate.v1 import ModelState
from tinkergate_client import Client, TinkergateError, connect

T = TypeVar("T")

QUIET = ("session_heartbeat", "telemetry")
"""Routes whose requests are no steps of the run: they come by the clock."""


class Point(NamedTuple):
    """One request of the run: the n-th of its route."""

    route: str
    number: int


class Outcome(NamedTuple):
    """What came of one run."""

    kind: str
    """identical, stopped, or what is wrong."""
    words: str


def route_of(seen: Seen) -> str:
    """The route, without what differs between runs."""
    path = re.sub(r"^/api/v1/", "", seen.path.partition("?")[0])
    return re.sub(r"(?<=/)[^/]*:[^/]*", "*", path)


class Chain:
    """Program -> gateway -> proxy -> gateway with the engine."""

    def __init__(self, folder: Path, dialect: str) -> None:
        self.dialect = dialect
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        model = write_micro_model(folder / "micro")
        profile = ("--profile", "mint") if dialect == "mint" else ()
        key = {"TINKERGATE_API_KEY": KEYS[dialect]}
        self.upstream = Gateway(
            folder / "upstream",
            *("--model", str(model), "--http", "127.0.0.1:0", *profile),
            environment=key,
        )
        self.proxy = FaultyProxy(self.upstream.http)
        self.on_loop(self.proxy.__aenter__())
        config = folder / "front.toml"
        config.write_text(front_config(dialect, self.proxy.address))
        self.front = Gateway(
            folder / "front",
            *("--config", str(config)),
            environment={"UPSTREAM_KEY": KEYS[dialect]},
        )
        self.base_model = str(model)

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it on the proxy's loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(timeout=300)

    def close(self) -> None:
        """End everything."""
        self.front.stop()
        self.upstream.stop()
        self.on_loop(self.proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the front."""
        with connect(self.front.grpc, patience=30.0, timeout=30.0) as client:
            yield client

    def restart_upstream(self) -> Callable[[], Awaitable[None]]:
        """Something to await that kills the upstream and brings it up again."""

        def restart() -> None:
            self.upstream.kill()
            self.upstream.start()
            self.proxy.upstream = self.upstream.http

        async def run() -> None:
            await asyncio.to_thread(restart)

        return run

    def pause_upstream(self, seconds: float) -> Callable[[], Awaitable[None]]:
        """Something to await after which the upstream stands still for a time."""

        async def run() -> None:
            self.upstream.freeze()
            self._loop.call_later(seconds, self.upstream.thaw)

        return run


class Reference:
    """The undisturbed run: what it answers, its requests, and its weights after each step."""

    def __init__(self, chain: Chain) -> None:
        begin = len(chain.proxy.seen)
        with chain.client() as client:
            self.results = program.run(client, chain.base_model, "reference")
        self.final = chain.upstream.weights("reference-final")
        assert self.final is not None
        counts: Counter[str] = Counter()
        self.points: list[Point] = []
        for seen in list(chain.proxy.seen)[begin:]:
            route = route_of(seen)
            if route not in QUIET:
                self.points.append(Point(route, counts[route]))
                counts[route] += 1
        self.steps = self._trajectory(chain)

    def _trajectory(self, chain: Chain) -> dict[str, set[int]]:
        """How many optimizer steps were taken, by the weights: from a run upstream itself."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        key = KEYS[chain.dialect]
        with (
            connect(chain.upstream.grpc, api_key=key) as client,
            client.create_session() as session,
        ):
            model = session.create_model(chain.base_model, rank=program.RANK, seed=program.SEED)
            for step in range(program.STEPS + 2):
                model.save_state(f"step-{step}").result(60)
                weights = chain.upstream.weights(f"step-{step}")
                assert weights is not None
                found[weights].add(step)
                model.forward_backward(program.batch(step)).result(60)
                model.optim_step(learning_rate=program.LEARNING_RATE).result(60)
        return dict(found)


def faulty_run(
    chain: Chain, reference: Reference, name: str, point: Point, fault: Fault, *, lost: bool
) -> Outcome:
    """One run with one fault. `lost`: the upstream loses its models by it."""
    counts: Counter[str] = Counter()

    def script(seen: Seen) -> Fault | None:
        route = route_of(seen)
        number, counts[route] = counts[route], counts[route] + 1
        return fault if (route, number) == point else None

    before = chain.proxy.faults
    wrong = ""

    def inspect() -> None:
        nonlocal wrong
        chain.proxy.script = lambda _: None
        wrong = "" if lost else doubled(chain, reference, name)

    chain.proxy.script = script
    try:
        with chain.client() as client:
            results = program.run(client, chain.base_model, name, inspect)
    except TinkergateError as error:
        told: TinkergateError | None = error
    except Exception as error:
        return Outcome("UNCLEAR", f"{type(error).__name__}: {error}")
    else:
        told = None
    finally:
        chain.proxy.script = lambda _: None
    if chain.proxy.faults == before:
        return Outcome("not reached", "")
    if told is None:
        same = results == reference.results
        same = same and chain.upstream.weights(f"{name}-final") == reference.final
        return Outcome("identical", "") if same else Outcome("DIFFERENT", "the weights differ")
    words = f"{told.reason}: {told.message}"
    if not (told.reason and told.message) or told.reason == "INTERNAL":
        return Outcome("UNCLEAR", words)
    if wrong:
        return Outcome("DOUBLED", f"{wrong} ({words})")
    return Outcome("stopped", words)


def doubled(chain: Chain, reference: Reference, name: str) -> str:
    """What is wrong with the weights that the stopped run left upstream; empty if nothing is."""
    with connect(chain.upstream.grpc, api_key=KEYS[chain.dialect]) as client:
        for model in client.models(state=ModelState.MODEL_STATE_READY):
            if model.user_metadata.get("chaos") != name:
                continue
            session = client.attach_session(model.session_id)
            attached = session.attach_model(model.model_id)
            attached.save_state(f"{name}-left").result(60)
            weights = chain.upstream.weights(f"{name}-left")
            steps = reference.steps.get(weights or "")
            if steps is None:
                return "the weights are those of no step of the undisturbed run"
            if model.optimizer_steps not in steps:
                return f"{model.optimizer_steps} steps were counted, the weights have {steps}"
    return ""


def plan(
    chain: Chain, reference: Reference, args: argparse.Namespace
) -> Iterator[tuple[str, Point, Fault, bool]]:
    """What to inject where."""
    status = {
        "408": Fault("status", 408),
        "429": Fault("status", 429, (("retry-after", "1"),)),
        "500": Fault("status", 500),
        "503 after it was done": Fault("status_after", 503),
    }
    everywhere = {
        "cut before it was sent": Fault("refuse"),
        "answer lost": Fault("lose"),
        "answer cut in half": Fault("truncate"),
        "answer is garbage": Fault("garbage"),
        "held for 2 s": Fault("pause", seconds=2.0),
        **status,
    }
    for kind, fault in everywhere.items():
        for point in reference.points[:: args.every]:
            yield kind, point, fault, False
    firsts = list(dict.fromkeys(point.route for point in reference.points))
    for route in firsts:
        yield "402", Point(route, 0), Fault("status", 402), False
    for route in firsts:
        fault = Fault("run_then_lose", run=chain.restart_upstream())
        yield "upstream killed and restarted", Point(route, 0), fault, True
    for route in ("forward_backward", "optim_step", "retrieve_future")[: args.pauses]:
        fault = Fault("run_then_lose", run=chain.pause_upstream(60.0))
        yield "upstream stands still for 60 s", Point(route, 1), fault, False


def main() -> int:
    """Run it all; answers the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dialect", choices=sorted(KEYS), default="tinker")
    parser.add_argument("--every", type=int, default=1, help="take every n-th request only")
    parser.add_argument("--pauses", type=int, default=3, help="how many pauses of 60 s")
    parser.add_argument("--only", default="", help="only faults whose name has this in it")
    parser.add_argument("--verbose", action="store_true", help="print every run")
    args = parser.parse_args()
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    said: defaultdict[str, Counter[str]] = defaultdict(Counter)
    bad: list[str] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tinkergate-chaos-") as folder:
        chain = Chain(Path(folder), args.dialect)
        try:
            reference = Reference(chain)
            print(f"{args.dialect}: {len(reference.points)} requests in an undisturbed run")
            for number, (kind, point, fault, lost) in enumerate(plan(chain, reference, args)):
                if args.only not in kind:
                    continue
                name = f"run-{number}"
                outcome = faulty_run(chain, reference, name, point, fault, lost=lost)
                table[kind][outcome.kind] += 1
                where = f"{kind} at {point.route} {point.number}"
                if args.verbose:
                    print(f"  {where}: {outcome.kind} {outcome.words}", flush=True)
                if outcome.kind == "stopped":
                    said[kind][outcome.words[:160]] += 1
                elif outcome.kind.isupper():
                    bad.append(f"{where}: {outcome.kind}: {outcome.words}")
        finally:
            chain.close()
    report(table, said, bad)
    print(f"{time.monotonic() - begin:.0f} s")
    return 1 if bad else 0


def report(table: dict[str, Counter[str]], said: dict[str, Counter[str]], bad: list[str]) -> None:
    """Print faults and outcomes."""
    columns = ("identical", "stopped", "not reached", "DIFFERENT", "DOUBLED", "UNCLEAR")
    print(f"{'fault':34}" + "".join(f"{column:>13}" for column in columns))
    for kind, counts in table.items():
        print(f"{kind:34}" + "".join(f"{counts[column]:13}" for column in columns))
    for kind, words in said.items():
        print(f"\nstopped by: {kind}")
        for text, count in words.most_common():
            print(f"  {count} x {text}")
    for line in bad:
        print(f"BAD  {line}")
    runs = sum(counts.total() for counts in table.values())
    print(f"{runs - len(bad)} passed, {len(bad)} failed")


if __name__ == "__main__":
    sys.exit(main())
