from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tinkergate_client import Client, InvalidRequest
from tinkergate_client._scoring import _batches


def texts(count: int) -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(3, 512, size=1 + index % 17) for index in range(count)]


def test_scores_come_in_order_whatever_the_batches(client: Client) -> None:
    sequences = texts(20)
    together = client.score(sequences)
    apart = client.score(sequences, batch_tokens=20, in_flight=2)
    assert [score.logprobs.size for score in together] == [len(text) for text in sequences]
    for one, other in zip(together, apart, strict=True):
        assert np.isnan(one.logprobs[0])
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_the_likeliest_tokens_come_along(client: Client) -> None:
    (score,) = client.score([[5, 6, 7]], topk=4)
    assert score.topk_tokens is not None
    assert score.topk_logprobs is not None
    assert score.topk_tokens.shape == score.topk_logprobs.shape == (3, 4)
    assert (np.diff(score.topk_logprobs[1:], axis=1) <= 0).all()
    assert client.score([[5, 6, 7]])[0].topk_tokens is None


def test_the_temperature_counts(client: Client) -> None:
    cold, warm = (client.score([[5, 6, 7]], temperature=t)[0].logprobs[1:] for t in (0.5, 2))
    assert not np.allclose(cold, warm)


def test_no_sequences_have_no_scores(client: Client) -> None:
    assert client.score([]) == []


def test_sequences_are_taken_as_scores_are_asked_for(client: Client) -> None:
    taken = 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        for index in itertools.count():
            taken = index + 1
            yield [5, 6, 7]

    scores = client.score_stream(endless(), batch_tokens=6, in_flight=2)
    for _ in range(3):
        next(scores)
    scores.close()  # type: ignore[attr-defined]
    assert taken <= 12


def test_bad_sequences_are_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest):
        client.score([[1], [600]])
    with pytest.raises(ValueError, match="one dimension"):
        client.score([[[1, 2]]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="must be positive"):
        client.score([[1]], in_flight=0)


def test_batches_are_filled_up_to_the_bound() -> None:
    lengths = [
        [len(text) for text in batch] for batch in _batches([[1] * n for n in (3, 4, 9, 2, 5)], 8)
    ]
    assert lengths == [[3, 4], [9], [2, 5]]
