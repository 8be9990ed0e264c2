"""What is wrong is refused with one clear reason, and nothing else suffers."""

from __future__ import annotations

from typing import Any

import interop_reference
import pytest
from interop_examples import supervised
from interop_sdk import Sdk, of, one

from tinkergate_client import Session

WORDS = {
    "short targets": ["target_tokens", "3", "4"],
    "token outside": ["9999"],
    "missing input": ["advantages"],
    "unknown loss": ["hinge"],
    "unknown setting": ["sharp"],
    "unknown path": ["tinker://nobody:train:0/weights/none"],
    "in the middle": ["target_tokens"],
    "unknown model": ["nobody/none"],
    "unknown weights": ["tinker://nobody:train:0/sampler_weights/none"],
}
"""What the reason has to name, by case."""


@pytest.fixture(scope="module")
def reference(session: Session, direct: Any) -> interop_reference.Seen:
    """One step, with nothing wrong around it."""
    model = interop_reference.new_model(session, direct.base_model)
    examples = interop_reference.data(supervised(3, seed=5))
    before = model.forward_backward(examples).result()
    interop_reference.step(model)
    after = model.forward(examples).result()
    return [
        interop_reference.seen("before", before),
        interop_reference.seen("after", after),
    ]


def test_refusals(sdk: Sdk, reference: interop_reference.Seen) -> None:
    seen = sdk.run("refusals", wrong_key="tml-stranger")
    failures = {line["case"]: line["failure"] for line in of(seen, "refused")}
    assert set(failures) == {*WORDS, "wrong key"}
    for case, words in WORDS.items():
        failure = failures[case]
        for word in words:
            assert word in failure["message"], (case, failure)
        if case in ("unknown model", "unknown weights"):
            continue
        # A refused training request is the failure of its future, so that later ones go on.
        assert failure["type"] == "RequestFailedError", (case, failure)
        assert failure["category"] == "user", (case, failure)
    assert failures["wrong key"]["status"] == 401
    for what in ("before", "after"):
        assert one(seen, what)["logprobs"] == one(reference, what)["logprobs"]
