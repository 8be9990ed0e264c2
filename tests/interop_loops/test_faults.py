"""Answers that are lost on the way: the SDK sends again, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from faulty_proxy import Fault, FaultyProxy, Seen
from interop_sdk import one
from loops_sdk import LoopsSdk

LOST = {"forward_backward": 1, "optim_step": 2, "save_weights_for_sampler": 1, "sample": 1}
"""Which submission on each route is done and not told."""


@pytest.mark.parametrize("door", ["serverless"], indirect=True)
async def test_lost_answers(sdk: LoopsSdk, door: Any, sampling_reference: dict[str, Any]) -> None:
    submitted: Counter[str] = Counter()
    polls = 0

    def script(seen: Seen) -> Fault | None:
        nonlocal polls
        route = seen.path.rpartition("/")[2]
        if seen.method == "GET" and "/operations/" in seen.path:
            polls += 1
            # Each poll in its own way, at first.
            ways = {1: Fault("lose"), 2: Fault("status", status=502), 3: Fault("refuse")}
            return ways.get(polls)
        if seen.method == "POST" and route in LOST:
            submitted[route] += 1
            if submitted[route] == LOST[route]:
                return Fault("lose")
        return None

    async with FaultyProxy(door.http) as proxy:
        proxy.script = script
        seen = await asyncio.to_thread(sdk.at(f"http://{proxy.address}").run, "faults")
    assert proxy.faults == len(LOST) + 3
    assert submitted == {
        "forward_backward": 3,
        "optim_step": 3,
        "save_weights_for_sampler": 3,
        "sample": 2,
    }
    tokens = [each.tokens.tolist() for each in sampling_reference["newer greedy"].sequences]
    assert one(seen, "sampled")["tokens"] == tokens
    assert one(seen, "version")["version"] == 2
