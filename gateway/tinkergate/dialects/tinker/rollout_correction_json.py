"""MinT's `rollout_correction_config` (wire section 13.5), read. Its names are those of verl's
rollout correction, which MinT takes, and those of the contract."""

from __future__ import annotations

from collections.abc import Mapping

from tinkergate.dialects.tinker.json_fields import Fields, shown
from tinkergate.errors import invalid_field
from tinkergate.v1 import RolloutCorrection

_UPPER = ("rollout_rs_threshold", "threshold")
_LOWER = ("rollout_rs_threshold_lower", "lower_threshold")
_SEQUENCE_BOUNDS = ("sequence", "seq_sum_k1")
"""What `rollout_rs` calls a bound on the ratio of a whole sequence."""

_KNOWN = frozenset(
    {*_UPPER, *_LOWER, "rollout_rs", "rollout_is", "rollout_is_threshold", "weight_cap"}
)

_AS_IT_IS: Mapping[str, object] = {"bypass_mode": True, "loss_type": "reinforce"}
"""Settings of verl's that MinT's public script sends, with the value that says what the loss does
anyway: the trainer is compared with the sampler itself, and ratios are not clipped."""


def rollout_correction_from_json(fields: Fields) -> RolloutCorrection:
    """A RolloutCorrection. The threshold is a number, or "low_high" for both bounds. What is not
    on whole sequences, and settings that are not known, would change what is computed: they are
    refused with GatewayError (INVALID)."""
    for name, value in _AS_IT_IS.items():
        if name in fields and fields.raw(name) != value:
            raise fields.wrong(name, f"must be {shown(value)}, or absent")
    for name, value in fields.value.items():
        if name in _AS_IT_IS:
            continue
        if name not in _KNOWN and value is not None and value is not False:
            raise fields.wrong(name, f"must be absent; known are {', '.join(sorted(_KNOWN))}")
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
    if "weight_cap" in fields:
        correction.weight_cap = fields.number("weight_cap")
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
