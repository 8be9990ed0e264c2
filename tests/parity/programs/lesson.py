"""What the three programs train on, by which settings, and how they tell what came of it.

Standard library only: it is read in the environments of the SDKs too.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

STEPS = 10
MIDDLE = 5
"""After how many steps the model is saved, dropped, and made again from its checkpoint."""
RANK = 8
SEED = 11
ADAM = {
    "learning_rate": 5e-3,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}
MAX_TOKENS = 12

PLACE: dict[str, str] = json.loads(os.environ.get("PARITY_PLACE", "{}"))
"""Where the gateway is and what it is asked for: "address", "key", "base_model", "run" (a name of
this run's own)."""

_DRAW = random.Random(4)
TEXTS = [[_DRAW.randrange(3, 500) for _ in range(length)] for length in (25, 11, 40, 18, 33, 7)]
PROMPT = TEXTS[0][:6]


class Example:
    """One text: `tokens` to read, and beside each the `targets` with their `weights`."""

    def __init__(self, text: Sequence[int]) -> None:
        self.tokens = list(text[:-1])
        self.targets = list(text[1:])
        # The beginning is given, not learned; the rest counts in halves and wholes.
        self.weights = [0.0, 0.0] + [1.0 if at % 3 else 0.5 for at in range(len(text) - 3)]


def batch(step: int) -> list[Example]:
    """The examples of a step, another selection each time."""
    return [Example(TEXTS[(step + offset) % len(TEXTS)]) for offset in range(4)]


def loss(step: int, logprobs: Sequence[Sequence[float | None]]) -> float:
    """The loss of a step from the logprobs that came back: -sum(weight x logprob), in float64.
    What does not count may come back as nothing at all."""
    total = 0.0
    for example, row in zip(batch(step), logprobs, strict=True):
        assert len(row) == len(example.weights), (len(row), len(example.weights))
        for weight, logprob in zip(example.weights, row, strict=True):
            if weight:
                assert logprob is not None
                total -= weight * logprob
    return total


def tell(losses: Sequence[float], tokens: Sequence[int], logprobs: Sequence[float]) -> None:
    """Print what came of it. Numbers keep every bit."""
    told: dict[str, Any] = {
        "losses": list(losses),
        "tokens": list(tokens),
        "logprobs": list(logprobs),
    }
    print(json.dumps(told), flush=True)


def run(program: Callable[[], None]) -> None:
    """Run a program to its end, and leave at once: what an SDK has running in the background is no
    reason to stay, and may not be ended in the midst of it."""
    try:
        program()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
