"""What a request is held against: the facts of a base model and the abilities of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinkergate.v1 import BackendCapabilities, LossSetting, SupportedModel


@dataclass(frozen=True)
class LossRule:
    """What one loss takes."""

    required: frozenset[str]
    allowed: frozenset[str]
    """All inputs, the required ones included."""
    config_keys: frozenset[str]
    settings: Mapping[str, LossSetting]
    """What is known of the keys' values."""
    paired: bool
    single_target: bool
    emulated: bool
    """Whether the gateway computes it."""


class Abilities:
    """A backend's capabilities, laid out for looking up."""

    def __init__(self, capabilities: BackendCapabilities) -> None:
        self.capabilities = capabilities
        self.backend = capabilities.name
        self.optimizers = frozenset(capabilities.optimizers)
        self.losses: Mapping[str, LossRule] = {
            loss.name: LossRule(
                required=frozenset(loss.required_inputs),
                allowed=frozenset(loss.required_inputs) | frozenset(loss.optional_inputs),
                config_keys=frozenset(loss.config_keys),
                settings={setting.name: setting for setting in loss.settings},
                paired=loss.paired,
                single_target=loss.single_target,
                emulated=loss.emulated,
            )
            for loss in capabilities.losses
        }


@dataclass(frozen=True)
class Facts:
    """One base model on one backend. A 0 means that the backend does not say."""

    abilities: Abilities
    vocab_size: int
    max_context_length: int

    @classmethod
    def of(cls, model: SupportedModel, abilities: Abilities) -> Facts:
        """What a backend says of a base model."""
        return cls(abilities, model.vocab_size, model.max_context_length)
