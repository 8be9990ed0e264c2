"""What Loops can do (wire sections 6 and 13)."""

from __future__ import annotations

from tinkergate.backends.emulation import CROSS_ENTROPY, TARGETS, WEIGHTS, emulated_losses
from tinkergate.backends.loops.settings import LoopsSettings
from tinkergate.v1 import BackendCapabilities, BackendKind, LossCapability


def capabilities(settings: LoopsSettings) -> BackendCapabilities:
    """What the service can do, and the losses that can be computed here: its own have other
    formulas and another reduction than the canon, and neither is documented."""
    native = LossCapability(
        name=CROSS_ENTROPY, required_inputs=[TARGETS], optional_inputs=[WEIGHTS]
    )
    return BackendCapabilities(
        name=settings.name,
        kind=BackendKind.BACKEND_KIND_LOOPS,
        losses=[native, *emulated_losses([CROSS_ENTROPY])],
        optimizers=["adamw"],
        image_input=True,
        pipeline_depth=settings.pipeline_depth,
        checkpoint_files=True,
        token_normalization=True,
    )


def emulated_names() -> frozenset[str]:
    """The losses that are computed here."""
    return frozenset(loss.name for loss in emulated_losses([CROSS_ENTROPY]))
