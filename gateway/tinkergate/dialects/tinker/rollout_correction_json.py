"""MinT's `rollout_correction_config` (wire section 13.5), both ways. Its names are those of verl's
rollout correction, which MinT takes."""

from __future__ import annotations

from typing import Any

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import invalid_field
from tinkergate.v1 import RolloutCorrection

_UPPER = ("rollout_rs_threshold", "threshold")
_LOWER = ("rollout_rs_threshold_lower", "lower_threshold")
_SEQUENCE_BOUNDS = ("sequence", "seq_sum_k1")
"""What `rollout_rs` calls a bound on the ratio of a whole sequence."""

_KNOWN = frozenset({*_UPPER, *_LOWER, "rollout_rs", "rollout_is", "rollout_is_threshold"})


def rollout_correction_from_json(fields: Fields) -> RolloutCorrection:
    """A RolloutCorrection. The threshold is a number, or "low_high" for both bounds. What is not
    on whole sequences, and settings that are not known, would change what is computed: they are
    refused with GatewayError (INVALID)."""
    for name, value in fields.value.items():
        if name not in _KNOWN and value is not None and value is not False:
            raise fields.wrong(name, f"is not known; known are {', '.join(sorted(_KNOWN))}")
    if (fields.optional_text("rollout_rs") or "sequence") not in _SEQUENCE_BOUNDS:
        raise fields.wrong("rollout_rs", "must be 'sequence' or 'seq_sum_k1'")
    correction = RolloutCorrection()
    for name in _UPPER:
        if isinstance(fields.value.get(name), str):
            correction.lower_threshold, correction.threshold = _bounds(fields, name)
        elif name in fields:
            correction.threshold = fields.number(name)
    for name in _LOWER:
        if name in fields:
            correction.lower_threshold = fields.number(name)
    weighting = fields.optional_text("rollout_is")
    if weighting is not None:
        if weighting != "sequence":
            raise fields.wrong("rollout_is", "must be 'sequence'")
        correction.weight_cap = fields.number("rollout_is_threshold")
    return correction


def _bounds(fields: Fields, name: str) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in fields.text(name).split("_"))
    except ValueError:
        raise invalid_field(
            fields.path(name),
            f"is {fields.text(name)!r}; must be a number, or two as in '0.5_2.0'",
        ) from None
    return low, high


def rollout_correction_to_json(correction: RolloutCorrection) -> dict[str, Any]:
    """The config of a RolloutCorrection."""
    told: dict[str, Any] = {"rollout_rs": "sequence"}
    if correction.HasField("threshold"):
        told["rollout_rs_threshold"] = correction.threshold
    if correction.HasField("lower_threshold"):
        told["rollout_rs_threshold_lower"] = correction.lower_threshold
    if correction.HasField("weight_cap"):
        told["rollout_is"] = "sequence"
        told["rollout_is_threshold"] = correction.weight_cap
    return told
