"""A Tinker script runs on the Loops SDK's shim."""

from __future__ import annotations

import pytest
from interop_sdk import of, one
from loops_sdk import LoopsSdk


def test_shim(sdk: LoopsSdk) -> None:
    seen = sdk.run("shim")
    losses = [line["loss"] for line in of(seen, "step")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert all(line["optimizer"]["grad_norm:mean"] > 0 for line in of(seen, "step"))
    assert one(seen, "custom loss")["squares"] > 0
    resumed = one(seen, "resumed")
    assert resumed["after"] == pytest.approx(resumed["before"], rel=1e-9)
    sample = one(seen, "sample")
    assert sample["tokens"][0] == sample["tokens"][1]
    assert len(sample["tokens"][0]) == 5
    assert sample["scores"][0] is None
    assert all(score < 0 for score in sample["scores"][1:])
