"""Every loss against its formula in float64, its gradient against autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import LossCase, loss_case

from tinkergate_kernels.losses import LOSSES, LossResult, evaluate, loss
from tinkergate_kernels.plain.losses import BLOCK

RAGGED = (7, 0, 1, 40, 300, 2, 0, 13)
ALL = pytest.mark.parametrize("name", list(LOSSES))


def run(case: LossCase) -> LossResult:
    return evaluate(case.name, case.logprobs, case.inputs, case.offsets, case.config)


def assert_agrees(found: LossResult, case: LossCase) -> None:
    per_datum, gradient = case.expected()
    scale = max(1.0, float(per_datum.abs().sum()))
    assert found.per_datum.dtype == torch.float64
    torch.testing.assert_close(found.per_datum, per_datum, rtol=0, atol=1e-12 * scale)
    assert abs(float(found.loss - per_datum.sum())) <= 1e-12 * scale
    assert found.gradient.dtype == torch.float32
    assert found.gradient.shape == case.logprobs.shape
    torch.testing.assert_close(
        found.gradient.double(), gradient.double(), rtol=1e-7, atol=1e-12, equal_nan=True
    )


@ALL
@pytest.mark.parametrize("defaults", [True, False])
@pytest.mark.parametrize("optional", [True, False])
def test_loss_and_gradient(name: str, optional: bool, defaults: bool) -> None:
    case = loss_case(name, RAGGED, optional=optional, defaults=defaults)
    assert_agrees(run(case), case)


@ALL
def test_far_apart_policies(name: str) -> None:
    case = loss_case(name, RAGGED, spread=12.0)
    assert_agrees(run(case), case)


@ALL
@pytest.mark.parametrize("lengths", [(), (0, 0), (1, 0), (0, 1), (1, 1)])
def test_little_or_nothing(name: str, lengths: tuple[int, ...]) -> None:
    case = loss_case(name, lengths)
    found = run(case)
    assert found.per_datum.shape == (len(lengths),)
    assert_agrees(found, case)


@ALL
def test_more_tokens_than_a_block_on_any_number_of_threads(name: str) -> None:
    case = loss_case(name, (BLOCK - 5, 10, 2 * BLOCK, 0, 77, 3), optional=False)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(case))
    finally:
        torch.set_num_threads(threads)
    one, other = results
    assert_agrees(one, case)
    assert torch.equal(one.per_datum, other.per_datum)
    assert torch.equal(one.gradient, other.gradient)
    assert one.loss == other.loss
    assert one.metrics == other.metrics


def test_many_targets() -> None:
    case = loss_case("cross_entropy", (3, 0, 5), targets=4)
    found = run(case)
    wanted = -(case.inputs["weights"].double() * case.logprobs.double()).sum(1)
    parts = torch.stack([wanted[:3].sum(), wanted[:0].sum(), wanted[3:].sum()])
    torch.testing.assert_close(found.per_datum, parts, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.gradient, -case.inputs["weights"])


@ALL
def test_the_wrapper_hands_the_gradient_on(name: str) -> None:
    case = loss_case(name, RAGGED)
    leaf = case.logprobs.clone().requires_grad_()
    value = loss(name, leaf, case.inputs, case.offsets)
    assert value.dtype == torch.float32
    (-3 * value).backward()
    found = run(case)
    assert value.item() == pytest.approx(float(found.loss), rel=1e-6)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, -3 * found.gradient)


MASK = {name: "weights" if "weights" in LOSSES[name].required else "advantages" for name in LOSSES}
MASK["cross_entropy"] = "weights"


@ALL
@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan, -1e30])
def test_a_masked_token_adds_nothing_whatever_it_holds(name: str, garbage: float) -> None:
    case = loss_case(name, RAGGED)
    masked = case.inputs[MASK[name]] == 0
    if name == "gspo":  # the ratio of a sequence has a mask of its own
        masked &= case.inputs["sequence_ratio_mask"] == 0
    clean = run(case)
    case.logprobs[masked] = garbage
    for key in case.inputs:
        if key not in (MASK[name], "sequence_ratio_mask"):
            case.inputs[key][masked] = garbage
    dirty = run(case)
    assert torch.equal(dirty.per_datum, clean.per_datum)
    assert torch.equal(dirty.gradient, clean.gradient)
    assert dirty.metrics == clean.metrics
    assert not dirty.gradient[masked].any()


@ALL
def test_all_masked(name: str) -> None:
    case = loss_case(name, (3, 4), optional=False)
    for key in ("weights", "advantages"):
        if key in LOSSES[name].inputs:
            case.inputs[key] = torch.zeros(7)
    found = run(case)
    assert not found.gradient.any()
    assert float(found.loss) == pytest.approx(math.log(2) if name == "dpo" else 0)
    if "active_tokens:sum" in found.metrics:
        assert set(found.metrics.values()) == {0.0}
        assert "ratio:max" not in found.metrics


def one_token(name: str, lp: float, lq: float, advantage: float, **config: object) -> LossResult:
    """A single token, at a reference of its own logprob."""
    own = {"logprobs": lq, "advantages": advantage, "sequence_ratio_mask": 1.0, "ref_logprobs": lp}
    inputs = {key: torch.tensor([own[key]]) for key in LOSSES[name].required}
    return evaluate(name, torch.tensor([lp]), inputs, torch.tensor([0, 1]), config)


@pytest.mark.parametrize("name", ["ppo", "gspo", "grpo"])
def test_a_ratio_that_overflows_is_clipped_or_told(name: str) -> None:
    clipped = one_token(name, -1.0, -2000.0, 1.0)
    assert float(clipped.loss) == pytest.approx(-1.2)
    assert clipped.gradient.tolist() == [0.0]
    assert clipped.metrics["clipped_tokens:sum"] == 1
    assert clipped.metrics["ratio:max"] == math.inf
    told = one_token(name, -1.0, -2000.0, -1.0)
    assert float(told.loss) == math.inf
    assert told.gradient.tolist() == [math.inf]
    assert told.metrics["clipped_tokens:sum"] == 0


def test_a_setting_of_0_takes_an_infinite_term_away() -> None:
    assert float(one_token("dppo", -1.0, -2000.0, 1.0, adv_tau=0, kl_tau=0).loss) == 0
    inputs = {key: torch.tensor([-1.0]) for key in ("logprobs", "advantages")}
    inputs["ref_logprobs"] = torch.tensor([2000.0])
    found = evaluate("grpo", inputs["logprobs"], inputs, torch.tensor([0, 1]), {"beta": 0})
    assert float(found.loss) == 1.0
    assert found.gradient.tolist() == [1.0]


@pytest.mark.parametrize(
    ("lp", "lq", "advantage", "loss", "clipped"),
    [
        (math.log(0.5), math.log(0.4), 2.0, -2.4, 1),
        (math.log(0.5), math.log(0.4), -2.0, 2.5, 0),
        (math.log(0.3), math.log(0.6), 2.0, -1.0, 0),
        (math.log(0.3), math.log(0.6), -2.0, 1.6, 1),
    ],
)
def test_ppo_by_hand(lp: float, lq: float, advantage: float, loss: float, clipped: int) -> None:
    found = one_token("ppo", lp, lq, advantage)
    assert float(found.loss) == pytest.approx(loss, rel=1e-6)
    assert found.metrics["clipped_tokens:sum"] == clipped
    assert found.gradient.item() == pytest.approx(0 if clipped else loss, rel=1e-6)


def test_dppo_by_hand() -> None:
    rise, fall = (math.log(0.9), math.log(0.5)), (math.log(0.3), math.log(0.8))
    for (lp, lq), advantage, masked in [
        (rise, 1.0, True),
        (rise, -1.0, False),
        (fall, 1.0, False),
        (fall, -1.0, True),
    ]:
        found = one_token("dppo", lp, lq, advantage)
        penalty = 1e-3 * (lp - lq) ** 2
        wanted = penalty - (0 if masked else advantage * math.exp(lp - lq))
        assert float(found.loss) == pytest.approx(wanted, rel=1e-5)
        assert found.metrics["clipped_tokens:sum"] == masked


def test_dpo_by_hand() -> None:
    inputs = {
        "weights": torch.tensor([0.0, 1.0, 1.0]),
        "ref_logprobs": torch.tensor([-9.0, -2.0, -1.0]),
    }
    logprobs = torch.tensor([-1.0, -1.0, -3.0])
    found = evaluate("dpo", logprobs, inputs, torch.tensor([0, 2, 3]), {"beta": 0.5})
    margin = 0.5 * ((-1.0 + 2.0) - (-3.0 + 1.0))
    assert found.per_datum.tolist() == [pytest.approx(math.log1p(math.exp(-margin))), 0.0]
    slope = 0.5 / (1 + math.exp(margin))
    assert found.gradient.tolist() == pytest.approx([0.0, -slope, slope])
    assert found.metrics == {
        "pairs:sum": 1,
        "correct_pairs:sum": 1,
        "chosen_reward:sum": 0.5,
        "rejected_reward:sum": -1.0,
        "margin:sum": 1.5,
        "margin:min": 1.5,
        "margin:max": 1.5,
    }


def test_metrics_are_those_of_the_active_tokens() -> None:
    case = loss_case("grpo", RAGGED, optional=False)
    active = case.inputs["advantages"] != 0
    shift = (case.logprobs.double() - case.inputs["logprobs"])[active]
    away = (case.inputs["ref_logprobs"].double() - case.logprobs)[active]
    positive = case.inputs["advantages"][active] > 0
    ratio = shift.exp()
    clipped = torch.where(positive, ratio > 1.2, ratio < 0.8)
    assert clipped.any()
    assert run(case).metrics == {
        "active_tokens:sum": int(active.sum()),
        "clipped_tokens:sum": int(clipped.sum()),
        "ratio:sum": pytest.approx(float(ratio.sum())),
        "ratio:min": pytest.approx(float(ratio.min())),
        "ratio:max": pytest.approx(float(ratio.max())),
        "kl_k1:sum": pytest.approx(-float(shift.sum())),
        "kl_k3:sum": pytest.approx(float((ratio - 1 - shift).sum())),
        "kl_ref:sum": pytest.approx(float((away.exp() - 1 - away).sum())),
    }


def test_metrics_are_the_ones_that_the_registry_names() -> None:
    for name, spec in LOSSES.items():
        assert set(run(loss_case(name, RAGGED)).metrics) == set(spec.metrics)


@ALL
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_cut_of_the_datums_gives_the_same(name: str, data: Any) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6))
    lengths = [length for pair in pairs for length in pair]
    seed = data.draw(st.integers(0, 1 << 20))
    case = loss_case(name, lengths, seed=seed, spread=data.draw(st.floats(0, 5)))
    whole = run(case)
    assert_agrees(whole, case)
    cut = 2 * data.draw(st.integers(0, len(pairs)))
    at = int(case.offsets[cut])
    parts = [
        evaluate(
            name,
            case.logprobs[tokens],
            {key: each[tokens] for key, each in case.inputs.items()},
            offsets,
        )
        for tokens, offsets in [
            (slice(0, at), case.offsets[: cut + 1]),
            (slice(at, None), case.offsets[cut:] - at),
        ]
    ]
    assert torch.equal(torch.cat([part.per_datum for part in parts]), whole.per_datum)
    assert torch.equal(torch.cat([part.gradient for part in parts]), whole.gradient)
