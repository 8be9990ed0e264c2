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
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import program
from chain import QUIET, Chain, Point
from gateway_process import KEYS
from plan import Injection, plan

from tinkergate.v1 import ModelState
from tinkergate_client import TinkergateError


class Outcome(NamedTuple):
    """What came of one run."""

    kind: str
    """identical, stopped, or what is wrong."""
    words: str


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
            route = chain.route(seen)
            if route not in QUIET:
                self.points.append(Point(route, counts[route]))
                counts[route] += 1
        self.steps = self._trajectory(chain)

    def _trajectory(self, chain: Chain) -> dict[str, set[int]]:
        """How many optimizer steps were taken, by the weights: from a run that saves after each."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        with chain.client() as client, client.create_session() as session:
            model = session.create_model(chain.base_model, rank=program.RANK, seed=program.SEED)
            for step in range(program.STEPS + 3):
                model.save_state(f"step-{step}").result(program.PATIENCE)
                weights = chain.upstream.weights(f"step-{step}")
                assert weights is not None
                found[weights].add(step)
                program.gradient(model, step).result(program.PATIENCE)
                model.optim_step(learning_rate=program.LEARNING_RATE).result(program.PATIENCE)
        assert self.final in found, "the program does not end where its steps lead"
        return dict(found)


def faulty_run(chain: Chain, reference: Reference, name: str, injection: Injection) -> Outcome:
    """One run with one fault."""
    before = chain.proxy.faults
    wrong = ""
    with chain.upstream_client() as upstream:
        earlier = {model.model_id for model in upstream.models()}

    def inspect() -> None:
        nonlocal wrong
        chain.proxy.script = lambda _: None
        wrong = "" if injection.loses else doubled(chain, reference, name, earlier)

    chain.proxy.script = injection.script(chain)
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


def doubled(chain: Chain, reference: Reference, name: str, earlier: set[str]) -> str:
    """What is wrong with the weights that the stopped run left upstream, in models that were not
    there `earlier`; empty if nothing is."""
    with chain.upstream_client() as client:
        for model in list(client.models(state=ModelState.MODEL_STATE_READY)):
            if model.model_id in earlier:
                continue
            session = client.attach_session(model.session_id)
            attached = session.attach_model(model.model_id)
            left = f"{name}-left-{model.model_id.rpartition(':')[2]}"
            attached.save_state(left).result(60)
            weights = chain.upstream.weights(left)
            steps = reference.steps.get(weights or "")
            if steps is None:
                return "the weights are those of no step of the undisturbed run"
            counted = attached.info().optimizer_steps
            if counted not in steps:
                return f"{counted} steps were counted, the weights have {steps}"
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
    with tempfile.TemporaryDirectory(prefix="tinkergate-chaos-") as folder:
        chain = Chain(Path(folder), args.dialect, args.capacity)
        try:
            reference = Reference(chain)
            title = args.dialect + (f" ({args.capacity})" if args.dialect == "loops" else "")
            print(f"{title}: {len(reference.points)} requests in an undisturbed run", flush=True)
            injections = plan(chain, reference.points, every=args.every, pauses=args.pauses)
            for number, injection in enumerate(injections):
                kind, point = injection.kind, injection.point
                if args.only not in kind or args.at not in point.route:
                    continue
                started = time.monotonic()
                outcome = faulty_run(chain, reference, f"run-{number}", injection)
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
