"""Tinker's SDKs train: the numbers are those that the gRPC client gets, to the last bit."""

from __future__ import annotations

from typing import Any

import interop_reference
import pytest
from compatibility import proves_at_doors
from interop_sdk import NEWEST, Sdk, Seen, of, one
from transformers import AutoTokenizer


def same_output(told: dict[str, Any], expected: dict[str, Any]) -> None:
    """The logprobs of every datum, and every figure."""
    assert told["logprobs"] == expected["logprobs"], told["what"]
    # A loss that the backend lacks is computed by the gateway, which says so by one more figure.
    metrics = {k: v for k, v in told["metrics"].items() if k != "surrogate_loss:sum"}
    assert metrics == expected["metrics"], told["what"]


@proves_at_doors("import", local="native", tinker="native", mint="native")
@proves_at_doors("custom_loss", local="native", tinker="native", mint="native")
def test_training(
    sdk: Sdk, training_reference: interop_reference.Seen, micro_model_dir: Any
) -> None:
    seen = sdk.run("training")
    check_steps_and_losses(seen, training_reference)
    check_custom_loss(
        one(seen, "custom loss"), one(training_reference, "custom loss"), sdk.name == NEWEST
    )
    assert len(of(seen, "gspo")) == (sdk.name == NEWEST)
    for told in of(seen, "gspo"):
        same_output(told, one(training_reference, "gspo"))
    assert sdk.base_model in one(seen, "capabilities")["models"]
    info = one(seen, "info")
    assert info["names"] == [sdk.base_model, sdk.base_model]
    assert (info["is_lora"], info["lora_rank"]) == (True, interop_reference.RANK)
    tokenizer = AutoTokenizer.from_pretrained(micro_model_dir)
    told = one(seen, "tokenizer")
    assert told["tokens"] == tokenizer.encode(told["text"])


def check_steps_and_losses(seen: Seen, training_reference: interop_reference.Seen) -> None:
    for what in ("forward", "soft targets", "after"):
        same_output(one(seen, what), one(training_reference, what))
    steps = of(training_reference, "step")
    assert len(of(seen, "step")) == len(steps) == 3
    for told, expected in zip(of(seen, "step"), steps, strict=True):
        same_output(told, expected)
        assert told["optimizer"] == expected["optimizer"]
    losses = [line["metrics"]["loss:sum"] for line in of(seen, "step")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]

    for told, expected in zip(of(seen, "loss"), of(training_reference, "loss"), strict=True):
        assert told["loss_fn"] == expected["loss_fn"]
        same_output(told, expected)
        assert told["forward"] == expected["forward"]
    assert (
        one(seen, "clipped step")["optimizer"]
        == one(training_reference, "clipped step")["optimizer"]
    )


def check_custom_loss(told: dict[str, Any], expected: dict[str, Any], newest: bool) -> None:
    assert told["logprobs"] == expected["logprobs"]
    assert told["optimizer"] == expected["optimizer"]
    # What the server computed is the surrogate; the newest SDK calls it so.
    surrogate = "surrogate_loss:sum" if newest else "loss:sum"
    assert told["metrics"][surrogate] == expected["metrics"]["loss:sum"]
    assert told["metrics"]["squares"] == pytest.approx(expected["squares"], rel=1e-6)
