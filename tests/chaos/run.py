"""Faults between two gateways, at every step of a run: nothing is lost, and nothing done twice.

    python tests/chaos/run.py --dialect tinker

A program trains through a gateway whose backend is a second gateway, by way of a proxy that
mistreats one request of each run. The run must end with the weights of an undisturbed run, to the
bit, or stop with one clear error; and then the upstream's weights, and its count of steps, must be
those that an undisturbed model has to which was done what the program was told was done: each
thing once, in order, and nothing that failed. Prints what was injected and what came of it, and
exits non-zero if anything was lost, doubled or left unclear.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import program
from chain import QUIET, Chain, Point
from gateway_process import KEYS
from histories import Histories, State
from plan import Injection, plan
from program import Deed

from tinkergate.v1 import ModelState
from tinkergate_client import TinkergateError


class Outcome(NamedTuple):
    """What came of one run."""

    kind: str
    """identical, stopped, or what is wrong."""
    words: str


class Reference:
    """The undisturbed run: what it answers, its requests, and its last weights."""

    def __init__(self, chain: Chain) -> None:
        begin = len(chain.proxy.seen)
        with chain.client() as client:
            self.results = program.run(client, chain.base_model, "reference")
        self.final = chain.upstream.weights("reference-final")
        assert self.final is not None
        counts: Counter[str] = Counter()
        self.points: list[Point] = []
        for seen in list(chain.proxy.seen)[begin:]:
            route = chain.route(seen)
            if route not in QUIET:
                self.points.append(Point(route, counts[route]))
                counts[route] += 1


class Trial:
    """Runs with one fault each."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.reference = Reference(chain)
        self._histories = Histories(chain)

    def run(self, name: str, injection: Injection) -> Outcome:
        """One run."""
        chain = self._chain
        before = chain.proxy.faults
        wrong = ""
        with chain.upstream_client() as upstream:
            earlier = {model.model_id for model in upstream.models()}

        def inspect(told: Sequence[tuple[Deed, Any]]) -> None:
            nonlocal wrong
            if not injection.loses:
                for _, future in told:
                    future.exception(program.PATIENCE)
                chain.proxy.script = lambda _: None
                wrong = self._wrong(name, earlier, told)

        chain.proxy.script = injection.script(chain)
        try:
            with chain.client() as client:
                results = program.run(client, chain.base_model, name, inspect)
        except TinkergateError as error:
            failed: TinkergateError | None = error
        except Exception as error:
            return Outcome("UNCLEAR", f"{type(error).__name__}: {error}")
        else:
            failed = None
        finally:
            chain.proxy.script = lambda _: None
        if chain.proxy.faults == before:
            return Outcome("not reached", "")
        if failed is None:
            same = results == self.reference.results
            same = same and chain.upstream.weights(f"{name}-final") == self.reference.final
            return Outcome("identical", "") if same else Outcome("DIFFERENT", "the weights differ")
        words = f"{failed.reason}: {failed.message}"
        if not (failed.reason and failed.message) or failed.reason == "INTERNAL":
            return Outcome("UNCLEAR", words)
        if wrong:
            return Outcome("DOUBLED", f"{wrong} ({words})")
        return Outcome("stopped", words)

    def _wrong(self, name: str, earlier: set[str], told: Sequence[tuple[Deed, Any]]) -> str:
        """What is wrong with what the stopped run left upstream, in models that were not there
        `earlier`; empty if nothing is."""
        with self._chain.upstream_client() as client:
            for model in list(client.models(state=ModelState.MODEL_STATE_READY)):
                if model.model_id in earlier:
                    continue
                attached = client.attach_session(model.session_id).attach_model(model.model_id)
                left = f"{name}-left-{model.model_id.rpartition(':')[2]}"
                attached.save_state(left).result(program.PATIENCE)
                weights = self._chain.upstream.weights(left)
                state = State(weights or "", attached.info().optimizer_steps)
                if not self._histories.explain(told, state):
                    return (
                        f"nothing that the program was told leads to the weights that are left, "
                        f"whose count is {state.steps}"
                    )
        return ""


def main() -> int:
    """Run it all; answers the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dialect", choices=sorted(KEYS), default="tinker")
    parser.add_argument(
        "--capacity",
        choices=("serverless", "dedicated"),
        default="serverless",
        help="of Loops: whose the trainers and samplers are said to be",
    )
    parser.add_argument("--every", type=int, default=1, help="take every n-th request only")
    parser.add_argument("--pauses", type=int, default=3, help="how many pauses of 60 s")
    parser.add_argument("--only", default="", help="only faults whose name has this in it")
    parser.add_argument("--at", default="", help="only requests whose route has this in it")
    parser.add_argument("--verbose", action="store_true", help="print every run")
    args = parser.parse_args()
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    said: defaultdict[str, Counter[str]] = defaultdict(Counter)
    bad: list[str] = []
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the gateways too
    with tempfile.TemporaryDirectory(prefix="tinkergate-chaos-") as folder:
        chain = Chain(Path(folder), args.dialect, args.capacity)
        try:
            trial = Trial(chain)
            points = trial.reference.points
            title = args.dialect + (f" ({args.capacity})" if args.dialect == "loops" else "")
            print(f"{title}: {len(points)} requests in an undisturbed run", flush=True)
            injections = plan(chain, points, every=args.every, pauses=args.pauses)
            for number, injection in enumerate(injections):
                kind, point = injection.kind, injection.point
                if args.only not in kind or args.at not in point.route:
                    continue
                started = time.monotonic()
                outcome = trial.run(f"run-{number}", injection)
                table[kind][outcome.kind] += 1
                where = f"{kind} at {point.route} {point.number}"
                if args.verbose:
                    took = time.monotonic() - started
                    print(f"  {where}: {outcome.kind} {outcome.words} ({took:.0f} s)", flush=True)
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
