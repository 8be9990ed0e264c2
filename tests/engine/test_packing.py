"""Micro-batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkergate.engine.packing import pack


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([3], [range(1)]),
        ([4, 6], [range(2)]),
        ([4, 7], [range(1), range(1, 2)]),
        ([11, 1], [range(1), range(1, 2)]),
        ([1, 11, 1, 9], [range(1), range(1, 2), range(2, 4)]),
    ],
)
def test_budget_of_ten(lengths: list[int], expected: list[range]) -> None:
    assert pack(lengths, 10) == expected


def test_kinds_stay_apart() -> None:
    assert pack([1, 1, 1, 1], 10, kinds=["a", "a", "b", "a"]) == [
        range(2),
        range(2, 3),
        range(3, 4),
    ]


def test_pairs_stay_together() -> None:
    assert pack([3, 3, 3, 3, 1, 1, 9, 9], 10, together=2) == [
        range(2),
        range(2, 6),
        range(6, 8),
    ]
    assert pack([6, 6], 10, together=2) == [range(2)]
    assert pack([], 10, together=2) == []


@given(
    examples=st.lists(st.tuples(st.integers(1, 40), st.sampled_from("ab"))),
    budget=st.integers(1, 60),
)
def test_every_example_once_in_order_and_no_batch_could_take_more(
    examples: list[tuple[int, str]], budget: int
) -> None:
    lengths = [length for length, _ in examples]
    kinds = [kind for _, kind in examples]
    batches = pack(lengths, budget, kinds=kinds)
    assert [index for batch in batches for index in batch] == list(range(len(examples)))
    for batch in batches:
        total = sum(lengths[index] for index in batch)
        assert total <= budget or len(batch) == 1
        assert len({kinds[index] for index in batch}) == 1
        if batch.stop < len(examples) and kinds[batch.stop] == kinds[batch.start]:
            assert total + lengths[batch.stop] > budget
