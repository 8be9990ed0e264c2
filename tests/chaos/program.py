"""The program that is run through the faults: train, save, sample, go back, train on, save, score.

What it answers is compared to the bit with what it answers undisturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from tinkergate_client import Client, Datum, datum, supervised_datum

STEPS = 3
LAST = (STEPS, STEPS + 1)
"""Steps after the model has gone back to where it was after the first ones."""
EMULATED = "dppo"
RANK = 4
SEED = 7
LEARNING_RATE = 1e-2
PATIENCE = 240.0
"""Seconds that a result is waited for."""

_DRAWN = np.random.default_rng(5)
TEXTS = [_DRAWN.integers(3, 400, size=length).tolist() for length in (23, 9, 41, 17)]


def batch(step: int) -> list[Datum]:
    """The data of a step, another one each time."""
    turned = TEXTS[step % len(TEXTS) :] + TEXTS[: step % len(TEXTS)]
    return [supervised_datum(text, loss_mask=[0] + [1] * (len(text) - 1)) for text in turned[:3]]


def rollouts() -> list[Datum]:
    """The data of the last step: texts that were sampled by something else."""
    draw = np.random.default_rng(6)
    return [
        datum(
            text[:-1],
            text[1:],
            logprobs=draw.normal(-6.0, 0.1, len(text) - 1).astype(np.float32),
            advantages=draw.normal(0.0, 1.0, len(text) - 1).astype(np.float32),
        )
        for text in TEXTS[:2]
    ]


@dataclass
class Results:
    """Everything that the program was told."""

    losses: list[float] = field(default_factory=list)
    logprobs: list[bytes] = field(default_factory=list)
    samples: list[tuple[bytes, bytes]] = field(default_factory=list)
    scores: list[bytes] = field(default_factory=list)

    def note(self, future: Any) -> None:
        """Wait for a gradient, and take down what it says."""
        result = future.result(PATIENCE)
        self.losses.append(result.loss)
        self.logprobs += [row.tobytes() for row in result.logprobs]


class Deed(NamedTuple):
    """One thing that changes a model, or keeps what it is."""

    kind: Literal["gradient", "step", "save", "load"]
    step: int = 0
    """Whose gradient it is."""


class Trained:
    """A model, and all that was done to it, in order. What is saved and gone back to is the
    checkpoint `{name}-middle`."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self._middle = f"{name}-middle"
        self._path = ""
        self.deeds: list[tuple[Deed, Any]] = []
        """With their futures."""

    def do(self, deed: Deed) -> Any:
        """Submit it."""
        future = self._submit(deed)
        self.deeds.append((deed, future))
        return future

    def _submit(self, deed: Deed) -> Any:
        match deed.kind:
            case "gradient" if deed.step <= STEPS:
                return self.model.forward_backward(batch(deed.step))
            case "gradient":
                return self.model.forward_backward(rollouts(), EMULATED)
            case "step":
                return self.model.optim_step(learning_rate=LEARNING_RATE)
            case "save":
                return self.model.save_state(self._middle)
        return self.model.load_state(self._path, with_optimizer=True)

    def go_back(self, path: str) -> Any:
        """Load what was saved."""
        self._path = path
        return self.do(Deed("load"))

    def repeat(self, deeds: Sequence[Deed]) -> None:
        """Do these, one after another, and wait for them."""
        for deed in deeds:
            if deed.kind == "load":
                self.go_back(self._path).result(PATIENCE)
            elif deed.kind == "save":
                self._path = self.do(deed).result(PATIENCE)
            else:
                self.do(deed).result(PATIENCE)


def train(trained: Trained, name: str) -> Results:
    """Run the program on a model that is ready. The last weights are saved as `{name}-final`. The
    last gradient is of a loss that no service has, so the gateway computes it, by two operations of
    the service's."""
    results = Results()
    model = trained.model
    gradients, updates = [], []
    for step in range(STEPS):
        gradients.append(trained.do(Deed("gradient", step)))
        updates.append(trained.do(Deed("step")))
    middle = trained.do(Deed("save"))
    for future in gradients:
        results.note(future)
    for future in updates:
        future.result(PATIENCE)
    path = middle.result(PATIENCE)
    sampler = model.save_weights_for_sampler().result(PATIENCE)
    drawn = sampler.sample(TEXTS[0][:5], num_samples=2, max_tokens=8, seed=3, temperature=0.8)
    results.samples += [
        (np.asarray(s.tokens).tobytes(), np.asarray(s.logprobs).tobytes()) for s in drawn.sequences
    ]
    results.note(trained.do(Deed("gradient", STEPS)))
    trained.do(Deed("step")).result(PATIENCE)
    results.note(model.forward(batch(0)))  # what is loaded next would hide a step too many
    trained.go_back(path).result(PATIENCE)
    last = [(trained.do(Deed("gradient", s)), trained.do(Deed("step"))) for s in LAST]
    for gradient, update in last:
        results.note(gradient)
        update.result(PATIENCE)
    model.save_state(f"{name}-final").result(PATIENCE)
    return results


def run(
    client: Client,
    base_model: str,
    name: str,
    on_error: Callable[[Sequence[tuple[Deed, Any]]], None] = lambda _: None,
) -> Results:
    """The whole program, in a session of its own. `on_error` is called when something fails, before
    the session ends, with what was done to the model."""
    with client.create_session(display_name=name) as session:
        trained = Trained(None, name)
        try:
            trained.model = session.create_model(base_model, rank=RANK, seed=SEED)
            results = train(trained, name)
            final = trained.model.save_weights_for_sampler(f"{name}-scored").result(PATIENCE)
            scores = client.score(TEXTS, model_path=final.model_path)
        except Exception:
            on_error(trained.deeds)
            raise
        results.scores = [np.asarray(score.logprobs).tobytes() for score in scores]
    return results
