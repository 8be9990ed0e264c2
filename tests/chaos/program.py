"""The program that is run through the faults: train, save, sample, go back, train on, save, score.

What it answers is compared to the bit with what it answers undisturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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


def gradient(model: Any, step: int) -> Any:
    """Submit the gradient of a step, of which there are STEPS + 2. The last is that of a loss
    which no service has, so the gateway computes it, by two operations of the service's."""
    if step <= STEPS:
        return model.forward_backward(batch(step))
    return model.forward_backward(rollouts(), EMULATED)


@dataclass
class Results:
    """Everything that the program was told."""

    losses: list[float] = field(default_factory=list)
    logprobs: list[bytes] = field(default_factory=list)
    samples: list[tuple[bytes, bytes]] = field(default_factory=list)
    scores: list[bytes] = field(default_factory=list)


def train(model: Any, name: str) -> Results:
    """Run the program on a model that is ready. The last weights are saved as `{name}-final`."""
    results = Results()

    def note(future: Any) -> None:
        result = future.result(PATIENCE)
        results.losses.append(result.loss)
        results.logprobs += [row.tobytes() for row in result.logprobs]

    gradients, updates = [], []
    for step in range(STEPS):
        gradients.append(gradient(model, step))
        updates.append(model.optim_step(learning_rate=LEARNING_RATE))
    middle = model.save_state(f"{name}-middle")
    for future in gradients:
        note(future)
    for future in updates:
        future.result(PATIENCE)
    path = middle.result(PATIENCE)
    sampler = model.save_weights_for_sampler().result(PATIENCE)
    drawn = sampler.sample(TEXTS[0][:5], num_samples=2, max_tokens=8, seed=3, temperature=0.8)
    results.samples += [
        (np.asarray(s.tokens).tobytes(), np.asarray(s.logprobs).tobytes()) for s in drawn.sequences
    ]
    note(gradient(model, STEPS))
    model.optim_step(learning_rate=LEARNING_RATE).result(PATIENCE)
    model.load_state(path, with_optimizer=True).result(PATIENCE)
    last = [(gradient(model, s), model.optim_step(learning_rate=LEARNING_RATE)) for s in LAST]
    for each, update in last:
        note(each)
        update.result(PATIENCE)
    model.save_state(f"{name}-final").result(PATIENCE)
    return results


def run(
    client: Client, base_model: str, name: str, on_error: Callable[[], None] = lambda: None
) -> Results:
    """The whole program, in a session of its own. `on_error` is called when something fails,
    before the session ends."""
    with client.create_session(display_name=name) as session:
        try:
            model = session.create_model(
                base_model, rank=RANK, seed=SEED, user_metadata={"chaos": name}
            )
            results = train(model, name)
            final = model.save_weights_for_sampler(f"{name}-scored").result(PATIENCE)
            scores = client.score(TEXTS, model_path=final.model_path)
        except Exception:
            on_error()
            raise
        results.scores = [np.asarray(score.logprobs).tobytes() for score in scores]
    return results
