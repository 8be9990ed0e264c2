"""What `tinkergate_kernels` says of a loss, as a capability of a backend that computes it."""

from __future__ import annotations

import math

from tinkergate.v1 import LossCapability, LossSetting
from tinkergate_kernels.losses import LOSSES

TARGETS = "target_tokens"


def loss_capability(name: str) -> LossCapability:
    """The loss of that name in the registry."""
    loss = LOSSES[name]
    return LossCapability(
        name=name,
        required_inputs=[TARGETS, *loss.required],
        optional_inputs=loss.optional,
        config_keys=loss.settings,
        settings=[
            LossSetting(
                name=key,
                default_value=setting.default,
                minimum=setting.minimum,
                maximum=setting.maximum if math.isfinite(setting.maximum) else None,
            )
            for key, setting in loss.settings.items()
        ],
        paired=loss.paired,
        single_target=not loss.many_targets,
    )
