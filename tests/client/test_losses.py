"""Every loss over the wire, held against its formula in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tinkergate_client import Client, Datum, InvalidRequest, Session, TrainingModel, datum
from tinkergate_kernels.losses import LOSSES
from tinkergate_kernels.reference.losses import losses

VOCAB_SIZE = 512
LENGTHS = (5, 11, 1, 17)
CONFIG = {
    "ppo": {"clip_low_threshold": 0.95, "clip_high_threshold": 1.01},
    "dro": {"beta": 0.5},
    "dppo": {"kl_tau": 0.3},
    "dpo": {"beta": 0.4, "label_smoothing": 0.1},
    "grpo": {"beta": 0.2},
}


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.create_session() as opened:
        yield opened


@pytest.fixture
def model(session: Session) -> TrainingModel:
    return session.create_model(rank=4, seed=1)


class Batch:
    """Datums for a loss, and the same as flat arrays."""

    def __init__(self, model: TrainingModel, name: str) -> None:
        draw = np.random.default_rng(3)
        tokens = [draw.integers(3, VOCAB_SIZE, size=(2, length)) for length in LENGTHS]
        plain = [datum(one, target) for one, target in tokens]
        sampled = model.forward(plain).result().logprobs
        self.inputs: list[dict[str, np.ndarray[Any, Any]]] = []
        for logprobs in sampled:
            own = {}
            for key in (*LOSSES[name].required, *(["weights"] if name == "cross_entropy" else [])):
                noise = draw.normal(size=logprobs.size).astype(np.float32)
                if "logprobs" in key:
                    own[key] = logprobs + noise * np.float32(0.2)
                elif "mask" in key:
                    own[key] = (noise > 0).astype(np.float32)
                else:
                    own[key] = noise
            self.inputs.append(own)
        self.data: list[Datum] = [
            datum(one, target, **own)
            for (one, target), own in zip(tokens, self.inputs, strict=True)
        ]

    def loss(self, name: str, logprobs: list[Any]) -> float:
        flat = {
            key: torch.from_numpy(np.concatenate([own[key] for own in self.inputs])).double()
            for key in self.inputs[0]
        }
        joined = torch.from_numpy(np.concatenate(logprobs)).double()
        offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
        return float(losses(name, joined, flat, offsets, CONFIG.get(name)).sum())


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_is_that_of_its_formula(model: TrainingModel, name: str) -> None:
    batch = Batch(model, name)
    config = CONFIG.get(name)
    for _ in range(2):
        forward = model.forward(batch.data, name, config)
        gradient = model.forward_backward(batch.data, name, config)
        update = model.optim_step(learning_rate=1e-2)
        only, both = forward.result(), gradient.result()
        wanted = batch.loss(name, both.logprobs)
        assert both.loss == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        assert only.metrics == both.metrics
        assert set(both.metrics) == {"loss:sum", *LOSSES[name].metrics}
        assert [values.shape for values in both.logprobs] == [(length,) for length in LENGTHS]
        assert update.result().metrics["grad_norm:mean"] > 0


def test_what_a_gateway_says_of_its_losses(client: Client) -> None:
    [backend] = client.capabilities().backends
    told = {loss.name: loss for loss in backend.losses}
    assert list(told) == list(LOSSES)
    for name, spec in LOSSES.items():
        assert list(told[name].required_inputs) == ["target_tokens", *spec.required]
        assert list(told[name].config_keys) == list(spec.settings)
        assert [setting.default_value for setting in told[name].settings] == [
            setting.default for setting in spec.settings.values()
        ]


ONES = np.ones(2, np.float32)
POLICY = {"logprobs": -ONES, "advantages": ONES}
ONE = datum([1, 2], [2, 3], **POLICY)
PREFERENCE = datum([1, 2], [2, 3], ONES, ref_logprobs=-ONES)


@pytest.mark.parametrize(
    ("name", "data", "config", "field", "told"),
    [
        ("ppo", [ONE], {"clip_low_threshold": 1.5}, "clip_low", "is 1.5; must be a number in 0..1"),
        ("ppo", [ONE], {"clip_high_threshold": 0.2}, "clip_high", "is 0.2; must be a number of at"),
        ("ppo", [ONE], {"clip_low_threshold": "low"}, "clip_low", 'is the text "low"; must be a'),
        ("cispo", [ONE], {"beta": 1.0}, "beta", "is not a setting of this loss"),
        ("gspo", [ONE], {}, "sequence_ratio_mask", "is missing; the loss needs it"),
        ("dro", [datum([1, 2], [2, 3], ONES, **POLICY)], {}, "weights", "is not an input"),
        (
            "ppo",
            [datum([1, 2], [2, 3], logprobs=-ONES, advantages=np.ones(1, np.float32))],
            {},
            "advantages",
            "has shape [1]; must be [2] like target_tokens",
        ),
        (
            "ppo",
            [datum([1, 2], [[2, 3], [4, 5]], **POLICY)],
            {},
            "target_tokens",
            "has shape [2, 2]; the loss takes one target a token",
        ),
        ("dpo", [PREFERENCE] * 3, {}, "data", "has 3 datums; the loss takes pairs"),
        ("stable_reinforce", [ONE], {}, "loss_fn", 'is "stable_reinforce"; backend'),
        ("custom", [ONE], {}, "loss_fn", 'is "custom"; backend'),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(
    model: TrainingModel,
    name: str,
    data: list[Datum],
    config: dict[str, float | str],
    field: str,
    told: str,
) -> None:
    for call in (model.forward_backward, model.forward):
        with pytest.raises(InvalidRequest) as caught:
            call(data, name, config).result()
        [violation] = caught.value.violations
        assert field in violation.field
        assert told in violation.description
    assert model.info().next_seq_id == 1
