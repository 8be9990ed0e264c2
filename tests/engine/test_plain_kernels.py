"""The engine with the kernels, and with plain PyTorch in their place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel
from tinkergate.engine.losses import LOSSES, Example
from tinkergate.engine.sampler import Sampler
from tinkergate.engine.sampling import PromptQuestions, SamplingRequest
from tinkergate.engine.scheduler import Scheduler
from tinkergate.engine.scorer import Scorer, ScoringRequest
from tinkergate.engine.trainer import ForwardBackwardResult, Trainer
from tinkergate_kernels.plain.linear_pass import PlainPass

WAIT = 120.0
LENGTHS = (7, 40, 1, 30)


@pytest.fixture(scope="module")
def adapters(micro_model_dir: Path) -> Adapters:
    adapters = Adapters(BaseModel.load(micro_model_dir))
    adapters.create("trained", LoraSpec(rank=4, alpha=8, seed=1))
    for _, parameter in adapters.parameters("trained"):
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(3))
    return adapters


def in_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on; answers a list that grows by the rows of each pass."""
    monkeypatch.setenv("TINKERGATE_KERNELS", "plain")
    rows: list[int] = []
    scores = PlainPass.scores

    def counted(self: PlainPass, **options: Any) -> Any:
        rows.append(len(self._rows.hidden))
        return scores(self, **options)

    monkeypatch.setattr(PlainPass, "scores", counted)
    return rows


def examples(name: str) -> list[Example]:
    rng = np.random.default_rng(5)
    data = []
    for count in LENGTHS:
        inputs: dict[str, NDArray[Any]] = {"target_tokens": rng.integers(512, size=count)}
        for key in LOSSES[name].required:
            numbers = rng.normal(size=count).astype(np.float32)
            inputs[key] = -6 + numbers * 0.1 if "logprobs" in key else numbers
        data.append(Example(rng.integers(512, size=count), inputs))
    return data


def trained(adapters: Adapters, name: str) -> tuple[ForwardBackwardResult, list[torch.Tensor]]:
    trainer = Trainer(adapters._base, adapters, "trained", tokens_per_micro_batch=48)
    work = trainer.forward_backward(examples(name), name, {}, backward=True)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            assert trainer._gradients.parts is not None
            return stop.value, trainer._gradients.parts


@pytest.mark.parametrize("name", list(LOSSES))
def test_training_is_the_same(
    name: str, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, gradients = trained(adapters, name)
    rows = in_plain_pytorch(monkeypatch)
    found, plain = trained(adapters, name)
    assert sum(rows) == sum(LENGTHS)
    for ours, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        assert np.abs(ours - theirs).max() <= 2e-5
    assert found.metrics == pytest.approx(wanted.metrics, rel=1e-4, abs=1e-4)
    largest = max(float(each.abs().max()) for each in gradients)
    assert largest > 0
    for one, other in zip(plain, gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * largest


@pytest.fixture
def lanes(adapters: Adapters) -> Iterator[tuple[Sampler, Scorer]]:
    scheduler = Scheduler()
    base = adapters._base
    yield Sampler(scheduler, base, adapters), Scorer(scheduler, base, adapters)
    scheduler.close()


def answers(lanes: tuple[Sampler, Scorer]) -> list[NDArray[Any]]:
    """Prompt logprobs, likeliest tokens, targets' logprobs, and scores with likeliest tokens."""
    sampler, scorer = lanes
    rng = np.random.default_rng(6)
    prompt, targets = rng.integers(512, size=40), rng.integers(512, size=(39, 3))
    questions = PromptQuestions(logprobs=True, topk=5, targets=targets)
    asked = SamplingRequest(prompt, max_tokens=1, seed=0, questions=questions)
    told = sampler.submit("trained", asked).future.result(WAIT).prompt
    assert told.logprobs is not None
    assert told.topk is not None
    assert told.targets is not None
    request = ScoringRequest(prompt, np.array([30, 10]), 0.7, 4)
    scored = scorer.submit("trained", request).future.result(WAIT)
    assert scored.topk is not None
    return [told.logprobs[1:], told.targets, *told.topk, scored.logprobs, *scored.topk]


def test_scores_are_the_same(
    lanes: tuple[Sampler, Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = answers(lanes)
    rows = in_plain_pytorch(monkeypatch)
    found = answers(lanes)
    assert rows
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        if ours.dtype.kind == "i":
            assert np.array_equal(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
