"""What the two dialects can do (wire sections 11.2, 13.4 and 13.7)."""

from __future__ import annotations

from collections.abc import Sequence

from tinkergate.backends.emulation import emulated_losses
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.v1 import BackendCapabilities, BackendKind, LossCapability, LossSetting

MINT_MAX_RANK = 64

_TARGETS = "target_tokens"
_BEHAVIOUR = (_TARGETS, "logprobs", "advantages")
_LOW, _HIGH = "clip_low_threshold", "clip_high_threshold"
_CLIPS = (
    LossSetting(name=_LOW, default_value=0.8, minimum=0.0),
    LossSetting(name=_HIGH, default_value=1.2, minimum=0.0),
)


def capabilities(settings: TinkerSettings) -> BackendCapabilities:
    """What the service can do, as far as it is documented, and the losses that can be computed
    here."""
    mint = settings.dialect == "mint"
    native = _losses(mint)
    kind = BackendKind.BACKEND_KIND_MINT if mint else BackendKind.BACKEND_KIND_TINKER
    return BackendCapabilities(
        name=settings.name,
        kind=kind,
        losses=[*native, *emulated_losses([loss.name for loss in native])],
        optimizers=["adamw"] if mint else ["adamw", "dimuon"],
        max_lora_rank=MINT_MAX_RANK if mint else 0,
        image_input=True,
        audio_input=not mint,
        inflight_samplers=not mint,
        # The stable_reinforce loss names sequences by ids that only the service's own clients see.
        stability_info=False,
        # Without numbers that the service knows requests again by, the order is only sure one
        # after the other.
        pipeline_depth=1 if mint else settings.pipeline_depth,
        reverse_kl=mint,
        checkpoint_interpolation=mint,
        rollout_correction=mint,
        vla=mint,
        external_weights=not mint,
        checkpoint_files=True,
    )


def _losses(mint: bool) -> list[LossCapability]:
    """The built-in losses; MinT's table lets importance_sampling have weights, and has no gspo."""
    losses = [
        LossCapability(
            name="cross_entropy", required_inputs=[_TARGETS], optional_inputs=["weights"]
        ),
        LossCapability(
            name="importance_sampling",
            required_inputs=_BEHAVIOUR,
            optional_inputs=["weights"] if mint else [],
            single_target=True,
        ),
        _clipped("ppo", _BEHAVIOUR, (_LOW, _HIGH)),
        _clipped("cispo", _BEHAVIOUR, (_LOW, _HIGH)),
        LossCapability(
            name="dro", required_inputs=_BEHAVIOUR, config_keys=["beta"], single_target=True
        ),
    ]
    if not mint:
        losses.append(_clipped("gspo", (*_BEHAVIOUR, "sequence_ratio_mask"), ()))
    return losses


def _clipped(name: str, required: Sequence[str], optional: Sequence[str]) -> LossCapability:
    """A loss whose ratio is kept between two bounds."""
    return LossCapability(
        name=name,
        required_inputs=required,
        optional_inputs=optional,
        config_keys=[_LOW, _HIGH],
        settings=_CLIPS,
        single_target=True,
    )
