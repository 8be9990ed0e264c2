"""Choosing tokens from logits."""

import numpy as np
import pytest
import torch

from tinkergate.engine.drawing import (
    DrawRule,
    Row,
    draw_seed,
    likeliest_of,
    stream,
)

VOCABULARY = 1009


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 4


def draws(logits: torch.Tensor, rule: DrawRule, count: int, seed: int = 7) -> list[int]:
    row, numbers = Row(logits, rule.logprob_temperature), stream(seed, 0)
    return [int(row.draw(rule, numbers.random(1))) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
def test_logprobs_are_those_of_the_tempered_softmax(
    logits: torch.Tensor, temperature: float
) -> None:
    expected = (logits.double() / temperature).log_softmax(-1)
    row = Row(logits, temperature)
    torch.testing.assert_close(row.logprobs().double(), expected, rtol=1e-6, atol=1e-6)
    token = torch.tensor(11)
    assert float(row.logprob(token)) == pytest.approx(float(expected[11]), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, float("-inf")])
    count = 20_000
    seen = np.bincount(draws(logits, DrawRule(temperature), count), minlength=5) / count
    expected = (logits / temperature).softmax(-1).numpy()
    # Five standard deviations of a proportion.
    assert np.abs(seen - expected).max() < 5 * np.sqrt(0.25 / count)
    assert seen[4] == 0


def test_temperature_zero_takes_the_likeliest_and_the_lower_id_of_equals() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert draws(logits, DrawRule(0.0), 20) == [1] * 20
    row = Row(logits, DrawRule(0.0).logprob_temperature)
    assert float(row.logprob(torch.tensor(1))) == pytest.approx(float(logits.log_softmax(-1)[1]))


def test_top_k_leaves_exactly_k_tokens_and_ties_go_to_lower_ids() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 2.0, 1.0, 0.0])
    assert set(draws(logits, DrawRule(top_k=3), 500)) == {1, 2, 3}
    assert set(draws(logits, DrawRule(top_k=1), 50)) == {3}
    assert set(draws(logits, DrawRule(top_k=100), 500)) == set(range(6))


def test_top_p_leaves_the_smallest_set_that_reaches_p() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.3])
    logits = probabilities.log()
    assert set(draws(logits, DrawRule(top_p=0.39), 200)) == {1}
    assert set(draws(logits, DrawRule(top_p=0.6), 500)) == {1, 3}
    assert set(draws(logits, DrawRule(top_p=0.75), 500)) == {1, 2, 3}
    assert set(draws(logits, DrawRule(top_p=1e-9), 50)) == {1}


def test_top_p_applies_to_what_top_k_leaves() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the two likeliest, 4/7 and 3/7: 0.5 is reached by the first, 0.6 only by both.
    assert set(draws(logits, DrawRule(top_k=2, top_p=0.5), 200)) == {0}
    assert set(draws(logits, DrawRule(top_k=2, top_p=0.6), 200)) == {0, 1}


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.99, 0.9999])
def test_top_p_equals_a_full_sort(logits: torch.Tensor, top_p: float) -> None:
    probabilities, order = logits.double().softmax(-1).sort(descending=True, stable=True)
    nucleus = order[: int((probabilities.cumsum(0) < top_p).sum()) + 1]
    allowed = Row(logits, 1.0)._allowed(DrawRule(top_p=top_p))
    assert allowed.tolist() == nucleus.tolist()


@pytest.mark.parametrize(
    "rule",
    [
        DrawRule(),
        DrawRule(0.0),
        DrawRule(0.6, top_k=20),
        DrawRule(1.3, top_p=0.8),
        DrawRule(1e-30, top_p=0.5),
        DrawRule(1e-45),
    ],
)
def test_never_a_token_of_probability_zero(rule: DrawRule) -> None:
    logits = torch.full((64,), float("-inf"))
    logits[[3, 40]] = torch.tensor([1.0, 2.0])
    row = Row(logits, rule.logprob_temperature)
    uniforms = np.array([0.0, 1e-300, 0.25, 0.5, 1 - 2**-53])
    assert set(row.draw(rule, uniforms).tolist()) <= {3, 40}


def test_streams_are_reproducible_and_distinct() -> None:
    numbers = [
        tuple(stream(seed, index).random(4)) for seed in (0, 1, 2**64 - 1) for index in (0, 1)
    ]
    assert len(set(numbers)) == 6
    assert numbers == [
        tuple(stream(seed, index).random(4)) for seed in (0, 1, 2**64 - 1) for index in (0, 1)
    ]
    assert draw_seed() != draw_seed()


def test_a_row_does_not_depend_on_the_memory_that_it_lies_in(logits: torch.Tensor) -> None:
    block = torch.randn(16, VOCABULARY)
    alone = Row(logits.clone(), 0.8)
    for place in range(16):
        block[place] = logits
        beside = Row(block[place], 0.8)
        assert torch.equal(alone.cumulative, beside.cumulative)
        assert torch.equal(alone.shifted, beside.shifted)


@pytest.mark.parametrize("k", [1, 2, 7, 500, VOCABULARY])
def test_the_likeliest_are_sorted_and_ties_go_to_lower_ids(k: int) -> None:
    # Few distinct values: ties everywhere, at the edge of the k too.
    values = torch.randint(
        0, 9, (3, VOCABULARY), generator=torch.Generator().manual_seed(3)
    ).float()
    for row in range(3):
        expected = sorted(range(VOCABULARY), key=lambda i, row=row: (-float(values[row, i]), i))[:k]
        assert likeliest_of(values[row], k).tolist() == expected


def test_logits_that_are_no_numbers_show_in_the_logprob() -> None:
    row = Row(torch.tensor([0.0, float("nan"), 1.0]), 1.0)
    assert not np.isfinite(float(row.logprob(row.draw(DrawRule(), np.array(0.5)))))
