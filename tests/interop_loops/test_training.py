"""The Loops SDK trains: the numbers are those that the gRPC client gets, to the last bit."""

from __future__ import annotations

from typing import Any

import loops_reference
import pytest
from interop_sdk import Seen, of, one
from loops_reference import singles
from loops_sdk import LoopsSdk
from transformers import AutoTokenizer

ACKNOWLEDGED = "skip_token_normalization"


def same_output(told: dict[str, Any], expected: dict[str, Any], summed: bool = False) -> None:
    """The logprobs of every datum, and the mean loss of a datum."""
    assert singles(told["logprobs"]) == expected["logprobs"], told["what"]
    loss = expected["metrics"]["loss:sum"] / len(expected["logprobs"])
    assert told["loss"] == pytest.approx(loss, rel=1e-12)
    # What asks for sums is told that it got them, and nothing else is.
    assert told["metrics"].get(ACKNOWLEDGED) == (1.0 if summed else None)
    assert told["metrics"]["loss"] == told["loss"]


def test_training(
    sdk: LoopsSdk, training_reference: loops_reference.Seen, micro_model_dir: Any
) -> None:
    seen = sdk.run("training")
    same_output(one(seen, "forward"), one(training_reference, "forward"))
    check_steps(seen, training_reference)
    check_normalization(seen, training_reference)
    check_own_forms(seen, training_reference)
    told, expected = one(seen, "custom loss"), one(training_reference, "custom loss")
    same_output(told, expected, summed=True)
    assert told["optimizer"] == expected["optimizer"]
    assert told["metrics"]["squares"] == pytest.approx(expected["squares"], rel=1e-6)
    same_output(one(seen, "after"), one(training_reference, "after"))

    assert sdk.base_model in one(seen, "capabilities")["models"]
    assert set(one(seen, "capabilities")["longest"]) == {512}
    assert one(seen, "info")["rank"] == 8
    tokenizer = AutoTokenizer.from_pretrained(micro_model_dir)
    told = one(seen, "tokenizer")
    assert told["tokens"] == tokenizer.encode(told["text"])
    version = one(seen, "policy version")
    if sdk.capacity == "dedicated":
        assert version["version"] == 14
    else:
        assert version["type"] == "NotImplementedError"


def check_steps(seen: Seen, reference: Seen) -> None:
    steps = of(reference, "step")
    assert len(of(seen, "step")) == len(steps) == 3
    for told, expected in zip(of(seen, "step"), steps, strict=True):
        same_output(told, expected, summed=True)
        assert told["optimizer"] == expected["optimizer"]
        assert "normalization_tokens:sum" not in told["optimizer"]
    losses = [line["loss"] for line in of(seen, "step")]
    assert losses == sorted(losses, reverse=True)


def check_normalization(seen: Seen, reference: Seen) -> None:
    """Gradients are divided at the step by the number of tokens behind all of them."""
    told, expected = one(seen, "per token"), one(reference, "per token")
    sums = [loss * count for loss, count in zip(told["losses"], (2, 4), strict=True)]
    assert sums == pytest.approx(expected["sums"], rel=1e-12)
    assert told["optimizer"] == expected["optimizer"]
    assert told["optimizer"]["normalization_tokens:sum"] > 6
    for told, expected in zip(of(seen, "loss"), of(reference, "loss"), strict=True):
        assert told["loss_fn"] == expected["loss_fn"]
        same_output(told, expected)
        assert told["forward"] == pytest.approx(expected["forward"]["loss:sum"] / 5, rel=1e-12)
        assert told["optimizer"] == expected["optimizer"]
    same_output(one(seen, "soft targets"), one(reference, "soft targets"))
    for what in ("clipped step", "after mixed"):
        assert one(seen, what)["optimizer"] == one(reference, what)["optimizer"]
    mixed = one(seen, "mixed")
    assert (mixed["type"], mixed["error_class"]) == ("RemoteOpError", "NormalizationMixedError")


def check_own_forms(seen: Seen, reference: Seen) -> None:
    told, expected = one(seen, "ignored"), one(reference, "ignored")
    (logprobs,), (scored,) = singles(told["logprobs"]), expected["logprobs"]
    assert logprobs == [None, None, *scored[2:]]
    assert told["loss"] == pytest.approx(expected["metrics"]["loss:sum"], rel=1e-12)
    told, expected = one(seen, "no targets"), one(reference, "no targets")
    assert singles(told["logprobs"]) == [[*expected["logprobs"][0][:-1], 0.0]]
    same_output(one(seen, "spread"), one(reference, "spread"))
    for what in ("ignored step", "spread step"):
        assert one(seen, what)["optimizer"] == one(reference, what)["optimizer"]
