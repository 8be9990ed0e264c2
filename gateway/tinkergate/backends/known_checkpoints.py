"""The checkpoints that the gateway has at a service: what they are called there, and what is known
of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tinkergate.v1 import Checkpoint, CheckpointType, LoraConfig, OptimizerConfig


@dataclass(frozen=True)
class KnownCheckpoint:
    """One checkpoint."""

    upstream_path: str
    """What the service calls it."""
    base_model: str = ""
    lora_config: LoraConfig = field(default_factory=LoraConfig)
    """The adapter, as far as it is known."""
    optimizer_config: OptimizerConfig = field(default_factory=OptimizerConfig)
    optimizer_steps: int = 0
    """Steps that the model had taken; 0 if that is not known any more."""
    training: bool = True
    """Whether it has the optimizer's state."""


class KnownCheckpoints:
    """The checkpoints by their canonical paths."""

    def __init__(self) -> None:
        self._known: dict[str, KnownCheckpoint] = {}

    def take_up(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Those that the gateway remembers."""
        for message in checkpoints:
            lora = LoraConfig()
            lora.CopyFrom(message.lora_config)
            if not lora.HasField("rank") and message.lora_rank:
                lora.rank = message.lora_rank
            self._known[message.path] = KnownCheckpoint(
                message.upstream_path or message.path,
                message.base_model,
                lora,
                message.optimizer_config,
                training=message.type == CheckpointType.CHECKPOINT_TYPE_TRAINING,
            )

    def note(self, path: str, known: KnownCheckpoint) -> None:
        """A checkpoint was made."""
        self._known[path] = known

    def forget(self, path: str) -> None:
        """A checkpoint is gone. Unknown paths are no error."""
        self._known.pop(path, None)

    def find(self, path: str) -> KnownCheckpoint:
        """A checkpoint; of one that nothing is known of, the service's path is taken to be the
        canonical one."""
        return self._known.get(path) or KnownCheckpoint(path)

    def __contains__(self, path: str) -> bool:
        return path in self._known
