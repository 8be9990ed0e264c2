"""More than 24 MiB in one call go in several requests, whatever the order in which they arrive."""

from __future__ import annotations

import json
from typing import Any

import loops_reference
import pytest
from interop_sdk import Seen, one
from loops_sdk import LoopsSdk
from wire_tap import WireTap

COUNT, LENGTH, K = 46, 500, 48
CAP = 24 << 20


def check(seen: Seen, reference: loops_reference.Seen) -> None:
    told, expected = one(seen, "backward"), one(reference, "backward")
    assert told["count"] == COUNT
    assert told["shapes"] == [[LENGTH, K]] * COUNT
    assert told["digest"] == expected["digest"]
    assert told["loss"] == pytest.approx(expected["loss"] / COUNT, rel=1e-9)
    assert told["metrics"]["skip_token_normalization"] == 1.0
    optimizer = one(reference, "step")["optimizer"]
    assert one(seen, "step")["optimizer"] == pytest.approx(optimizer, rel=1e-5)
    loss = one(reference, "forward")["loss"]
    assert one(seen, "forward")["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("door", ["serverless"], indirect=True)
def test_backwards(sdk: LoopsSdk, door: Any, chunks_reference: loops_reference.Seen) -> None:
    """The part of the greater number arrives first, and waits for the other."""
    tap = WireTap(
        door.http,
        greatest_first=2,
        number=lambda body: int(json.loads(body)["seq_id"]),
        keep_host=True,
    )
    with tap:
        check(sdk.at(tap.url).run("chunks"), chunks_reference)
    posts = [each for each in tap.passed if each.path.endswith("/forward_backward")]
    assert [json.loads(post.body)["seq_id"] for post in posts] == [3, 2]
    assert sum(len(post.body) for post in posts) > CAP
