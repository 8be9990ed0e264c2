from __future__ import annotations

import itertools
from itertools import chain

import pytest

from tinkergate.cli.training_plan import Schedule, batches, learning_rate, steps_of_epochs


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule.CONSTANT, [2, 2, 2, 2]),
        (Schedule.LINEAR, [2, 1.5, 1, 0.5]),
        (Schedule.COSINE, [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]),
    ],
)
def test_a_schedule_starts_full_and_falls(schedule: Schedule, expected: list[float]) -> None:
    rates = [learning_rate(schedule, 2.0, step, 4) for step in range(4)]
    assert rates == pytest.approx(expected)


def test_an_epoch_has_as_many_steps_as_batches() -> None:
    assert steps_of_epochs(examples=10, batch_size=4, epochs=3) == 9
    assert steps_of_epochs(examples=8, batch_size=4, epochs=1) == 2


def test_each_pass_sees_everything_once_in_an_order_of_its_own() -> None:
    drawn = list(itertools.islice(batches(list(range(10)), 4, seed=1), 6))
    assert [len(batch) for batch in drawn] == [4, 4, 2, 4, 4, 2]
    first, second = list(chain(*drawn[:3])), list(chain(*drawn[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_seed_tells_the_order() -> None:
    def order(seed: int) -> list[list[int]]:
        return list(itertools.islice(batches(list(range(20)), 20, seed), 2))

    assert order(1) == order(1)
    assert order(1) != order(2)
