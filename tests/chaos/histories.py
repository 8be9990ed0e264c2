"""What may have become of a model, by what its program was told: its weights after every history
that fits, from runs without faults."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc
import program
from chain import Chain
from program import Deed

from tinkergate_client import TinkergateError

MOST = 48
"""How many histories of one run are gone through."""


class State(NamedTuple):
    """What a model is."""

    weights: str
    """The SHA-256 of its file."""
    steps: int
    """Of the optimizer."""


class Histories:
    """Goes through histories, each of them once."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._states: dict[tuple[Deed, ...], State] = {}

    def explain(self, told: Sequence[tuple[Deed, Any]], state: State) -> bool:
        """Whether some history ends in that state that fits what the program was told: what it
        was told to be done was, once and in order; what failed was not; and what has an unknown
        outcome either way."""
        possible = list(itertools.islice(_possible(told), MOST))
        # Those that are known cost nothing.
        possible.sort(key=lambda history: history not in self._states)
        return any(self.state(history) == state for history in possible)

    def state(self, history: tuple[Deed, ...]) -> State:
        """What it leads to."""
        if history not in self._states:
            self._states[history] = self._run(history)
        return self._states[history]

    def _run(self, history: tuple[Deed, ...]) -> State:
        name = f"history-{len(self._states)}"
        steps = kept = 0
        for deed in history:
            match deed.kind:
                case "step":
                    steps += 1
                case "save":
                    kept = steps
                case "load":
                    steps = kept
        with self._chain.client() as client, client.create_session() as session:
            model = session.create_model(
                self._chain.base_model, rank=program.RANK, seed=program.SEED
            )
            program.Trained(model, name).repeat(history)
            model.save_state(f"{name}-end").result(program.PATIENCE)
        weights = self._chain.upstream.weights(f"{name}-end")
        assert weights is not None
        return State(weights, steps)


def _possible(told: Sequence[tuple[Deed, Any]]) -> Iterator[tuple[Deed, ...]]:
    """The histories that fit, likely ones first."""
    done: list[tuple[Deed, bool]] = []
    """With whether it is certain."""
    for deed, future in told:
        error = future.exception(program.PATIENCE)
        if error is None:
            done.append((deed, True))
        elif not isinstance(error, TinkergateError) or error.code == grpc.StatusCode.UNKNOWN:
            done.append((deed, False))
    doubtful = [place for place, (_, certain) in enumerate(done) if not certain]
    seen = set()
    # An unknown outcome may also be one that ends all: nothing after it was done.
    for count in (0, len(doubtful), *range(1, len(doubtful))):
        for kept in itertools.combinations(doubtful, count):
            history = tuple(
                deed for place, (deed, certain) in enumerate(done) if certain or place in kept
            )
            for each in (history, *_before_loads(history)):
                if each not in seen:
                    seen.add(each)
                    yield each


def _before_loads(history: tuple[Deed, ...]) -> Iterator[tuple[Deed, ...]]:
    """What a model is left as whose place was taken, when a state was loaded, by a fresh one; and
    that one before it is loaded."""
    for place, deed in enumerate(history):
        if deed.kind == "load":
            yield history[:place]
            yield ()
