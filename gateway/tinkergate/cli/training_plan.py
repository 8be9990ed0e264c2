"""What a training run does at each step: which examples, at which learning rate."""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Schedule(enum.StrEnum):
    """How the learning rate goes from its full value to the end."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


def learning_rate(schedule: Schedule, full: float, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: the full one at first; the falling schedules
    would reach 0 one step after the last."""
    done = step / steps
    match schedule:
        case Schedule.CONSTANT:
            return full
        case Schedule.LINEAR:
            return full * (1 - done)
        case Schedule.COSINE:
            return full * (1 + math.cos(math.pi * done)) / 2


def steps_of_epochs(examples: int, batch_size: int, epochs: int) -> int:
    """How many steps see every example `epochs` times."""
    return epochs * math.ceil(examples / batch_size)


def batches(items: Sequence[Item], batch_size: int, seed: int) -> Iterator[list[Item]]:
    """Batches without end. Each pass over the items is in a new order, drawn by `seed`; the last
    batch of a pass may be smaller."""
    order = random.Random(seed)
    while True:
        shuffled = order.sample(items, len(items))
        for start in range(0, len(shuffled), batch_size):
            yield shuffled[start : start + batch_size]
