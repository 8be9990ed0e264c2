"""MinT's `rollout_correction_config`."""

from __future__ import annotations

from typing import Any

import pytest

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.rollout_correction_json import rollout_correction_from_json
from tinkergate.dialects.tinker.write_requests import rollout_correction_json
from tinkergate.errors import GatewayError
from tinkergate.v1 import RolloutCorrection

PUBLIC_SCRIPT = {
    "rollout_is": "sequence",
    "rollout_is_threshold": 1.1,
    "rollout_rs": "seq_sum_k1",
    "rollout_rs_threshold": "0.5_2.0",
    "bypass_mode": True,
    "loss_type": "reinforce",
}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (PUBLIC_SCRIPT, {"threshold": 2.0, "lower_threshold": 0.5, "weight_cap": 1.1}),
        ({"rollout_rs_threshold": 1.1}, {"threshold": 1.1}),
        ({"threshold": 1.1, "lower_threshold": 0.9}, {"threshold": 1.1, "lower_threshold": 0.9}),
        ({"rollout_is": "sequence", "rollout_is_threshold": 2}, {"weight_cap": 2.0}),
    ],
)
def test_what_is_read(config: dict[str, Any], wanted: dict[str, float]) -> None:
    found = rollout_correction_from_json(Fields(config, "rollout_correction_config"))
    assert found == RolloutCorrection(**wanted)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollout_rs", "geometric"),
        ("rollout_is", "token"),
        ("rollout_rs_threshold", "2.0"),
        ("loss_type", "ppo_clip"),
        ("bypass_mode", False),
        ("rollout_token_veto_threshold", 1e-4),
    ],
)
def test_what_would_compute_something_else_is_refused(name: str, value: Any) -> None:
    fields = Fields({**PUBLIC_SCRIPT, name: value}, "rollout_correction_config")
    with pytest.raises(GatewayError) as caught:
        rollout_correction_from_json(fields)
    assert [v.field for v in caught.value.violations] == [f"rollout_correction_config.{name}"]


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 2.0, "lower_threshold": 0.5, "weight_cap": 1.1},
        {"threshold": 1.1},
        {"lower_threshold": 1 / 3},
        {"weight_cap": 0.3},
        {"threshold": 1e300, "lower_threshold": 1e-300},
    ],
)
def test_what_is_written_is_read_again(fields: dict[str, float]) -> None:
    correction = RolloutCorrection(**fields)
    told = rollout_correction_json(correction)
    assert rollout_correction_from_json(Fields(told)) == correction
    if len(fields) == 3:
        assert told == PUBLIC_SCRIPT
