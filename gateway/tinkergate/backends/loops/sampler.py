"""One sampler: what is known of it, and how calls of it say which weights they mean (wire sections
2, 8.2 and 8.5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tinkergate.backends.loops.trainer import Trainer
from tinkergate.dialects.loops.read_completions import Echo
from tinkergate.dialects.loops.read_results import SamplerFacts

STARTING_TIME = 60.0
"""For how long 400 and 404 mean that a dedicated sampler is still starting, once its deployment was
seen running, in seconds; until it has answered."""


@dataclass
class LoopsSampler:
    """What the gateway's sampler, a base model or a checkpoint is sampled by."""

    facts: SamplerFacts
    base_model: str
    """The service's own spelling."""
    headers: dict[str, str]
    """What says which weights are meant."""
    echo: Echo
    pin: str = ""
    """The checkpoint at the service that it is held to; empty for none."""
    trainer: Trainer | None = None
    """Whose weights without a name it has."""
    version: int = 0
    """Of those weights."""
    publication: int | None = None
    """Of its trainer, if it serves what was published last; None if it is held to a checkpoint."""
    made_of: tuple[str, str, str] | None = None
    """The session, base model and checkpoint that it was made of apart from any run."""
    looked: bool = False
    """Whether the deployment was seen ready."""
    answered: bool = False
    """Whether it has answered."""
    seen: float = 0.0
    """When it was last seen ready or has answered, by the event loop's clock."""
    running: int = 0
    """Calls that are running."""
    closing: bool = False
    ready: asyncio.Lock = field(default_factory=asyncio.Lock)
    remaking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def dedicated(self) -> bool:
        """Whether it answers at once, rather than through a queue."""
        return bool(self.facts.model_id)

    @property
    def source(self) -> dict[str, str]:
        """The fields of a sample body that say what to sample from."""
        if self.dedicated:
            return {}
        return {"model": self.base_model} | ({"lora": self.pin} if self.pin else {})

    def starting_time(self, ready_time: float) -> float:
        """For how long 400 and 404 mean that it is still starting."""
        if self.answered:
            return 0.0
        return STARTING_TIME if self.looked else ready_time
