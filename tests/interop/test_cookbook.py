"""tinker-cookbook's own loops learn, unmodified but for their data, whatever does the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from compatibility import proves_at_doors
from interop_sdk import COOKBOOK, Sdk, one

DOORS = ["direct", "tinker", "mint", "loops"]


@pytest.mark.parametrize("door", DOORS, indirect=True)
@proves_at_doors("cookbook", local="native", tinker="native", mint="native", loops="native")
def test_the_supervised_loop(door: Any, make_sdk: Callable[..., Sdk], tmp_path: Path) -> None:
    sdk = make_sdk(COOKBOOK, door)
    arguments = {"folder": str(tmp_path / "run"), "save_every": 6}
    seen = sdk.run("cookbook_supervised", steps=12, **arguments)
    losses = one(seen, "losses")["losses"]
    print(f"interop: the cookbook's supervised loss: {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    saved = one(seen, "checkpoints")["entries"]
    assert [entry["name"] for entry in saved] == ["000006", "final"]
    for entry in saved:
        assert entry["state_path"].startswith("tinker://")
        assert entry["sampler_path"].startswith("tinker://")


@pytest.mark.parametrize("door", DOORS, indirect=True)
@proves_at_doors("cookbook", local="native", tinker="native", mint="native", loops="native")
def test_the_reinforcement_learning_loop(
    request: pytest.FixtureRequest, door: Any, make_sdk: Callable[..., Sdk], tmp_path: Path
) -> None:
    sdk = make_sdk(COOKBOOK, door)
    # That it learns takes a while, and is the same wherever its numbers are.
    learns = request.node.callspec.params["door"] == "direct"
    steps = 12 if learns else 3
    seen = sdk.run("cookbook_rl", folder=str(tmp_path / "run"), steps=steps)
    rewards = one(seen, "rewards")["rewards"]
    print(f"interop: the cookbook's rewards: {[round(reward, 3) for reward in rewards]}")
    assert len(rewards) == steps
    assert not learns or mean(rewards[-3:]) > mean(rewards[:3]) + 0.2
    # What was sampled is scored the same by the model that sampled it.
    values_by_key = one(seen, "kl")["values"]
    assert values_by_key
    for values in values_by_key.values():
        assert all(abs(value) < 1e-3 for value in values), values
