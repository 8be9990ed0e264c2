"""Losses and their rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tinkergate.engine.losses import LOSSES, Example, MetricTotals, checked_loss
from tinkergate.errors import GatewayError, Kind


def example(count: int = 3, **inputs: NDArray[Any]) -> Example:
    defaults = {"target_tokens": np.zeros(count, np.int64)}
    return Example(np.zeros(count, np.int64), defaults | inputs)


def policy(count: int = 3, **inputs: NDArray[Any]) -> Example:
    ones = np.ones(count, np.float32)
    return example(count, **({"logprobs": -ones, "advantages": ones} | inputs))


def test_what_is_in_order_is_let_through() -> None:
    two = np.zeros((3, 2), np.int64)
    for good in (
        example(),
        example(weights=np.ones(3, np.float32)),
        example(target_tokens=two, weights=np.ones((3, 2), np.float32)),
        example(target_tokens=two),
    ):
        assert checked_loss("cross_entropy", {}, [good]) is LOSSES["cross_entropy"]


@pytest.mark.parametrize(
    ("name", "settings", "bad", "field", "told"),
    [
        ("entropy", {}, example(), "loss_fn", "is 'entropy'; must be one of cross_entropy"),
        ("custom", {}, example(), "loss_fn", "is 'custom'; must be one of cross_entropy"),
        ("stable_reinforce", {}, example(), "loss_fn", "is 'stable_reinforce'; must be one of"),
        ("cross_entropy", {"beta": 1.0}, example(), 'loss_fn_config["beta"]', "not a setting"),
        (
            "cross_entropy",
            {},
            example(advantages=np.ones(3, np.float32)),
            'data[1].loss_fn_inputs["advantages"]',
            "not an input of cross_entropy",
        ),
        (
            "cross_entropy",
            {},
            Example(np.zeros(3, np.int64), {}),
            'data[1].loss_fn_inputs["target_tokens"]',
            "is missing",
        ),
        (
            "cross_entropy",
            {},
            example(target_tokens=np.zeros(2, np.int64)),
            'data[1].loss_fn_inputs["target_tokens"]',
            "has shape [2]; must be [3] or [3, K]",
        ),
        (
            "cross_entropy",
            {},
            example(weights=np.ones((3, 2), np.float32)),
            'data[1].loss_fn_inputs["weights"]',
            "has shape [3, 2]; must be that of target_tokens, [3]",
        ),
        ("cross_entropy", {}, example(0), "data[1].model_input", "has no tokens"),
    ],
)
def test_what_is_not_is_refused_with_field_and_rule(
    name: str, settings: dict[str, float], bad: Example, field: str, told: str
) -> None:
    with pytest.raises(GatewayError) as caught:
        checked_loss(name, settings, [example(), bad])
    assert caught.value.kind is Kind.INVALID
    [violation] = caught.value.violations
    assert violation.field == field
    assert told in violation.description


@pytest.mark.parametrize(
    ("name", "settings", "data", "field", "told"),
    [
        (
            "ppo",
            {"clip_low_threshold": 1.5},
            [policy()],
            'loss_fn_config["clip_low_threshold"]',
            "is 1.5; must be a number in 0..1",
        ),
        (
            "cispo",
            {"clip_high_threshold": "1.2"},
            [policy()],
            'loss_fn_config["clip_high_threshold"]',
            "is '1.2'; must be a finite number of at least 1",
        ),
        (
            "gspo",
            {},
            [policy()],
            'data[0].loss_fn_inputs["sequence_ratio_mask"]',
            "is missing; gspo needs it",
        ),
        (
            "dro",
            {},
            [policy(weights=np.ones(3, np.float32))],
            'data[0].loss_fn_inputs["weights"]',
            "is not an input of dro",
        ),
        (
            "ppo",
            {},
            [
                policy(
                    target_tokens=np.zeros((3, 2), np.int64),
                    logprobs=np.zeros((3, 2), np.float32),
                    advantages=np.zeros((3, 2), np.float32),
                )
            ],
            'data[0].loss_fn_inputs["target_tokens"]',
            "has shape [3, 2]; must be [3]",
        ),
        (
            "dpo",
            {},
            [example(weights=np.ones(3, np.float32), ref_logprobs=-np.ones(3, np.float32))] * 3,
            "data",
            "has 3 datums; dpo takes pairs",
        ),
    ],
)
def test_each_loss_has_its_own_rules(
    name: str, settings: dict[str, float | str], data: list[Example], field: str, told: str
) -> None:
    with pytest.raises(GatewayError) as caught:
        checked_loss(name, settings, data)
    [violation] = caught.value.violations
    assert violation.field == field
    assert told in violation.description


def test_metrics_are_put_together_by_their_reduction() -> None:
    totals = MetricTotals()
    totals.add({"a:sum": 1.0, "b:mean": 2.0, "c:min": 3.0, "d:max": 4.0}, examples=1)
    totals.add({"a:sum": 2.0, "b:mean": 6.0, "c:min": 5.0, "d:max": 1.0}, examples=3)
    assert totals.result() == {"a:sum": 3.0, "b:mean": 5.0, "c:min": 3.0, "d:max": 4.0}
    totals.add({"e:median": 1.0}, examples=1)
    with pytest.raises(ValueError, match="median"):
        totals.result()
