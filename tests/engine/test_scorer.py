"""Logprobs of given sequences."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel
from tinkergate.engine.reading import STRETCH
from tinkergate.engine.scheduler import Queue, Scheduler
from tinkergate.engine.scorer import Scored, Scorer, ScoringRequest
from tinkergate.errors import GatewayError, Kind

WAIT = 120.0
ADAPTER = "trained"


@pytest.fixture(scope="module")
def scorer(micro_model_dir: Path) -> Iterator[Scorer]:
    base = BaseModel.load(micro_model_dir)
    # Longer than a step reads, so that long sequences are seen too.
    base.max_context = 3 * STRETCH
    adapters = Adapters(base)
    adapters.create(ADAPTER, LoraSpec(rank=4, alpha=8, seed=1))
    for _, parameter in adapters.parameters(ADAPTER):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    scheduler = Scheduler()
    yield Scorer(scheduler, base, adapters)
    scheduler.close()


def request(
    *lengths: int, temperature: float = 1.0, topk: int = 0, seed: int = 0
) -> ScoringRequest:
    tokens = np.random.default_rng(seed).integers(0, 512, sum(lengths))
    return ScoringRequest(tokens, np.array(lengths, np.int64), temperature, topk)


def scored(scorer: Scorer, wanted: ScoringRequest, adapter: str | None = None) -> Scored:
    return scorer.submit(adapter, wanted).future.result(WAIT)


def parts(wanted: ScoringRequest, array: np.ndarray) -> list[np.ndarray]:  # type: ignore[type-arg]
    return np.split(array, np.cumsum(wanted.lengths)[:-1])


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_scores_are_those_of_an_independent_forward(
    scorer: Scorer, micro_model_dir: Path, temperature: float
) -> None:
    wanted = request(5, 1, STRETCH + 200, 30, 2, temperature=temperature, topk=6)
    answer = scored(scorer, wanted)
    plain = scored(scorer, request(5, 1, STRETCH + 200, 30, 2, temperature=temperature))
    assert answer.topk is not None
    assert plain.topk is None
    np.testing.assert_allclose(plain.logprobs, answer.logprobs, atol=1e-4)
    model = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float32).eval()
    for tokens, logprobs, ids, values in zip(
        parts(wanted, wanted.tokens),
        parts(wanted, answer.logprobs),
        parts(wanted, answer.topk.ids),
        parts(wanted, answer.topk.logprobs),
        strict=True,
    ):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None]).logits[0].double() / temperature
        expected = logits.log_softmax(-1)[:-1].numpy()
        assert np.isnan(logprobs[0])
        assert np.isnan(values[0]).all()
        np.testing.assert_allclose(
            logprobs[1:], expected[np.arange(len(tokens) - 1), tokens[1:]], atol=1e-4
        )
        np.testing.assert_allclose(values[1:], -np.sort(-expected, axis=1)[:, :6], atol=1e-4)
        picked = np.take_along_axis(expected, ids[1:].astype(np.int64), axis=1)
        np.testing.assert_allclose(values[1:], picked, atol=1e-4)


def test_requests_share_batches_without_mixing(scorer: Scorer) -> None:
    """Requests of the same and of other kinds, all at once, give what each gives alone."""
    wanted = [
        (request(9, 40, 3, seed=1), None),
        (request(100, 100, 100, 100, 100, 100, 100, seed=2), None),
        (request(7, seed=3), ADAPTER),
        (request(7, temperature=0.5, seed=3), None),
        (request(7, topk=3, seed=3), None),
        (request(STRETCH + 1, 4, seed=4), ADAPTER),
        (request(1, seed=5), None),
    ]
    alone = [scored(scorer, r, adapter) for r, adapter in wanted]
    handles = [scorer.submit(adapter, r) for r, adapter in wanted]
    for handle, expected in zip(handles, alone, strict=True):
        answer = handle.future.result(WAIT)
        np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=1e-5)


def test_a_large_request_lets_a_small_one_pass(scorer: Scorer) -> None:
    large = scorer.submit(None, request(*[60] * 3000))
    small = scored(scorer, request(10))
    assert len(small.logprobs) == 10
    assert not large.future.done()
    assert large.cancel()
    with pytest.raises(GatewayError) as caught:
        large.future.result(WAIT)
    assert caught.value.kind is Kind.CANCELLED
    assert not large.cancel()


def test_a_request_without_sequences_is_answered(scorer: Scorer) -> None:
    answer = scored(scorer, ScoringRequest(np.empty(0, np.int64), np.empty(0, np.int64)))
    assert len(answer.logprobs) == 0


def test_an_error_ends_its_own_requests_only(scorer: Scorer) -> None:
    queue = Queue(scorer._scheduler, "gate")
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert leave.wait(WAIT)

    queue.call(hold)
    assert entered.wait(WAIT)
    broken = scorer.submit("unknown", request(5))
    good = scorer.submit(None, request(5))
    leave.set()
    with pytest.raises(ValueError, match="no adapter"):
        broken.future.result(WAIT)
    assert len(good.future.result(WAIT).logprobs) == 5
