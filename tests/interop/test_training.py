"""Tinker's SDKs train: the numbers are those that the gRPC client gets, to the last bit."""

from __future__ import annotations

from typing import Any

import interop_reference
import pytest
from compatibility import proves_at_doors
from interop_sdk import NEWEST, Sdk, Seen, of, one
from transformers import AutoTokenizer

WITHIN = 1e-6
"""How far, relative, the numbers of Loops may be from the engine's: its losses are summed by the
gateway, its logprobs come in decimals."""


def same_output(told: dict[str, Any], expected: dict[str, Any], within: float) -> None:
    """The logprobs of every datum, and every figure."""
    same_rows(told["logprobs"], expected["logprobs"], within)
    # A loss that the backend lacks is computed by the gateway, which says so by one more figure.
    metrics = {k: v for k, v in told["metrics"].items() if k != "surrogate_loss:sum"}
    same_figures(metrics, expected["metrics"], within)


def same_rows(told: list[list[float]], expected: list[list[float]], within: float) -> None:
    assert len(told) == len(expected)
    for row, wanted in zip(told, expected, strict=True):
        assert row == (pytest.approx(wanted, rel=within, abs=0) if within else wanted)


def same_figures(told: dict[str, float], expected: dict[str, float], within: float) -> None:
    assert told == (pytest.approx(expected, rel=within, abs=0) if within else expected)


@proves_at_doors("import", local="native", tinker="native", mint="native")
@proves_at_doors("custom_loss", local="native", tinker="native", mint="native")
def test_training(
    sdk: Sdk, training_reference: interop_reference.Seen, micro_model_dir: Any
) -> None:
    check(sdk.run("training"), training_reference, sdk, micro_model_dir)


@pytest.mark.parametrize("door", ["loops"], indirect=True)
@pytest.mark.parametrize("tinker", [NEWEST], indirect=True)
@proves_at_doors("import", loops="native")
@proves_at_doors("custom_loss", loops="native")
def test_training_at_loops(
    sdk: Sdk, loops_training_reference: interop_reference.Seen, micro_model_dir: Any
) -> None:
    """The program asks for an adapter with an unembedding, as all do that say nothing of it."""
    check(sdk.run("training"), loops_training_reference, sdk, micro_model_dir, WITHIN)


def check(
    seen: Seen,
    reference: interop_reference.Seen,
    sdk: Sdk,
    micro_model_dir: Any,
    within: float = 0.0,
) -> None:
    check_steps_and_losses(seen, reference, within)
    check_custom_loss(
        one(seen, "custom loss"), one(reference, "custom loss"), sdk.name == NEWEST, within
    )
    assert len(of(seen, "gspo")) == (sdk.name == NEWEST)
    for told in of(seen, "gspo"):
        same_output(told, one(reference, "gspo"), within)
    assert sdk.base_model in one(seen, "capabilities")["models"]
    info = one(seen, "info")
    assert info["names"] == [sdk.base_model, sdk.base_model]
    assert (info["is_lora"], info["lora_rank"]) == (True, interop_reference.RANK)
    tokenizer = AutoTokenizer.from_pretrained(micro_model_dir)
    told = one(seen, "tokenizer")
    assert told["tokens"] == tokenizer.encode(told["text"])


def check_steps_and_losses(seen: Seen, reference: interop_reference.Seen, within: float) -> None:
    for what in ("forward", "soft targets", "after"):
        same_output(one(seen, what), one(reference, what), within)
    steps = of(reference, "step")
    assert len(of(seen, "step")) == len(steps) == 3
    for told, expected in zip(of(seen, "step"), steps, strict=True):
        same_output(told, expected, within)
        same_figures(told["optimizer"], expected["optimizer"], within)
    losses = [line["metrics"]["loss:sum"] for line in of(seen, "step")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]

    for told, expected in zip(of(seen, "loss"), of(reference, "loss"), strict=True):
        assert told["loss_fn"] == expected["loss_fn"]
        same_output(told, expected, within)
        same_figures(told["forward"], expected["forward"], within)
    clipped = [one(lines, "clipped step")["optimizer"] for lines in (seen, reference)]
    same_figures(*clipped, within)


def check_custom_loss(
    told: dict[str, Any], expected: dict[str, Any], newest: bool, within: float
) -> None:
    same_rows(told["logprobs"], expected["logprobs"], within)
    same_figures(told["optimizer"], expected["optimizer"], within)
    # What the server computed is the surrogate; the newest SDK calls it so.
    surrogate = "surrogate_loss:sum" if newest else "loss:sum"
    figures = {"loss": told["metrics"][surrogate]}
    same_figures(figures, {"loss": expected["metrics"]["loss:sum"]}, within)
    assert told["metrics"]["squares"] == pytest.approx(expected["squares"], rel=1e-6)
