"""The Triton kernels under the interpreter: the same numbers, and every byte once."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from loss_cases import LossCase, loss_case
from triton_harness import TritonHarness, same_in_any_order

from tinkergate_kernels.gpu.datum_sums import TILE
from tinkergate_kernels.gpu.losses import SHIPPED, solve
from tinkergate_kernels.losses import LOSSES, LossResult
from tinkergate_kernels.losses.problem import Problem, problem
from tinkergate_kernels.plain import losses as plain

ALL = pytest.mark.parametrize("name", list(LOSSES))
RAGGED = (5, 0, TILE + 700, 1, 0, TILE - 706, 300, 12)
"""Datums within a tile, over tiles, empty, and one that ends with a tile."""


def prepared(case: LossCase) -> Problem:
    return problem(case.name, case.logprobs, case.inputs, case.offsets, case.config)


def assert_agrees(found: LossResult, case: LossCase) -> None:
    wanted = plain.solve(prepared(case))
    per_datum, gradient = case.expected()
    scale = max(
        1.0,
        float((case.logprobs.flatten() * wanted.gradient).abs().sum()),
        float(wanted.loss.abs()),
    )
    torch.testing.assert_close(found.per_datum, per_datum, rtol=0, atol=1e-6 * scale)
    assert abs(float(found.loss - per_datum.sum())) <= 1e-6 * scale
    torch.testing.assert_close(
        found.gradient.double(),
        gradient.flatten(),
        rtol=1e-6,
        atol=1e-6 * max([1.0, *gradient.abs().flatten().tolist()]),
    )
    assert found.metrics.keys() == wanted.metrics.keys()
    for key, value in wanted.metrics.items():
        assert found.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-3), key


@ALL
@pytest.mark.parametrize("optional", [True, False])
def test_loss_gradient_and_metrics(name: str, optional: bool) -> None:
    case = loss_case(name, RAGGED, optional=optional, defaults=not optional)
    assert_agrees(solve(prepared(case)), case)


@ALL
def test_error_does_not_grow_with_the_ratio(name: str) -> None:
    case = loss_case(name, (50, 60), spread=12.0)
    _, gradient = case.expected()
    found = solve(prepared(case)).gradient.double()
    big = gradient.abs() > 1
    # The difference of two logprobs is itself rounded, by half of 2^-23 of some 40 nats.
    error = (found - gradient)[big].abs() / gradient[big].abs()
    assert not error.numel() or float(error.max()) < 3e-6


@ALL
@pytest.mark.parametrize("lengths", [(), (0, 0), (1, 0), (0, 1), (TILE, 0), (TILE, TILE)])
def test_little_or_whole_tiles(name: str, lengths: tuple[int, ...]) -> None:
    case = loss_case(name, lengths)
    found = solve(prepared(case))
    if lengths:
        assert_agrees(found, case)
    assert found.per_datum.shape == (len(lengths),)


def test_many_targets() -> None:
    case = loss_case("cross_entropy", (300, 0, 500), targets=4)
    assert_agrees(solve(prepared(case)), case)


@ALL
def test_a_masked_token_adds_nothing_whatever_it_holds(name: str) -> None:
    case = loss_case(name, (30, 40))
    clean = solve(prepared(case))
    mask = "weights" if name in ("cross_entropy", "dpo") else "advantages"
    masked = case.inputs[mask] == 0
    if name == "gspo":
        masked &= case.inputs["sequence_ratio_mask"] == 0
    case.logprobs[masked] = -torch.inf
    for key in case.inputs:
        if "logprobs" in key or "threshold" in key:
            case.inputs[key][masked] = torch.nan
    dirty = solve(prepared(case))
    assert torch.equal(dirty.per_datum, clean.per_datum)
    assert torch.equal(dirty.gradient, clean.gradient)
    assert dirty.metrics == clean.metrics


def test_what_is_not_a_number_is_told() -> None:
    case = loss_case("ppo", (3, 4), optional=False)
    case.inputs["advantages"][:] = 1.0
    case.logprobs[1] = torch.nan
    found = solve(prepared(case))
    assert found.per_datum.isnan().tolist() == [True, False]
    assert found.gradient.isnan().nonzero().tolist() == [[1]]


@ALL
def test_every_element_is_written_once_and_order_is_nothing(name: str) -> None:
    case = loss_case(name, RAGGED)

    def run() -> list[torch.Tensor]:
        result = solve(prepared(case))
        assert result.metrics.keys() == set(LOSSES[name].metrics)
        return [result.loss[None], result.per_datum, result.gradient]

    # Where a datum ends with a tile, a slot is left out.
    same_in_any_order(run, partly={"Partials"})


INPUTS = {
    "Sampled": "logprobs",
    "Advantages": "advantages",
    "Weights": "weights",
    "Reference": "ref_logprobs",
    "Low": "clip_low_threshold",
    "High": "clip_high_threshold",
}
"""Arguments of the kernel, by the inputs that they are. Where a loss has none, the logprobs stand
in, and are not read."""


@pytest.mark.parametrize(
    ("name", "optional", "bound"),
    [
        ("cross_entropy", True, 12.1),
        ("cross_entropy", False, 8.1),
        ("importance_sampling", True, 20.1),
        ("importance_sampling", False, 16.1),
        ("ppo", False, 16.1),
        ("ppo", True, 24.1),
        ("cispo", False, 16.1),
        ("dro", False, 16.1),
        ("dppo", False, 16.1),
        ("grpo", False, 20.1),
    ],
)
def test_bytes_a_token(name: str, optional: bool, bound: float) -> None:
    case = loss_case(name, (3 * TILE, 5 * TILE), optional=optional)
    asked = prepared(case)
    with TritonHarness(partly={"Partials"}) as harness:
        solve(asked)
    arrays = [argument for argument, own in INPUTS.items() if own in case.inputs]
    plan = ["Offsets", "First", "Last", "Partials"]
    read = sum(harness.read[key] for key in ["Logprobs", *arrays, *plan])
    written = sum(harness.written[key] for key in ("Gradient", "Partials", "Statistics", "Sums"))
    tokens = asked.logprobs.numel()
    assert bound - 0.1 <= (read + written) / tokens <= bound


def test_every_loss_is_shipped_for_whole_and_for_last_tiles() -> None:
    kinds = [(each.constants.get("KIND"), each.constants.get("FULL")) for each in SHIPPED]
    assert {(name, full) for name in LOSSES for full in (True, False)} <= set(kinds)
    assert len({each.name for each in SHIPPED}) == len(SHIPPED)
