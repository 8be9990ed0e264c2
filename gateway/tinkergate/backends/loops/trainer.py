"""One trainer: what is known of it, and the calls of its operations (wire sections 5.1 and 8.5)."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinkergate.backends.loops.service import TRAINER, Call, Effect
from tinkergate.dialects.loops.read_results import Run, SamplerFacts

STARTING_TIME = 60.0
"""For how long 400 and 404 mean that a trainer is still starting, once its health was seen, in
seconds; until it has accepted its first operation."""


@dataclass
class Trainer:
    """One run at the service. A model has one at a time."""

    run: Run
    model_id: str
    """Of the gateway's model that it trains, or trained."""
    next_seq: int = 1
    ready: bool = False
    """Whether it has accepted an operation."""
    optimizer_steps: int = 0
    """Steps that it has taken, those of the checkpoint that it went on from included."""
    doubt: str = ""
    """Why nobody knows what it has gone through; empty if that is known."""
    fresh: bool = True
    """Whether its adapter began as a new one; then version 0 is the base model itself."""
    published: int = 0
    """The newest version that its paired sampler was given to serve."""
    publication: int = 0
    """Another number for other weights of the paired sampler."""
    moved: bool = False
    """Whether weights were loaded since the last publication."""
    gradients: Counter[bool] = field(default_factory=Counter)
    """Operations whose gradients wait for the step: how many are taken per token and how many are
    sums."""
    paired: SamplerFacts | None = None
    pairing: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 1
    """The model, and the samplers of weights that were saved without a name."""
    heart: asyncio.Task[None] | None = None

    @property
    def dedicated(self) -> bool:
        """Whether it has a deployment of its own."""
        return bool(self.run.deployment_id)

    @property
    def headers(self) -> dict[str, str]:
        """What says whose its requests are."""
        return {"x-run-id": self.run.run_id}

    def doubted(self, why: str) -> None:
        """Nobody knows any more what it has gone through."""
        self.doubt = self.doubt or why

    def loaded(self, optimizer_steps: int) -> None:
        """Its weights are those of a checkpoint after so many steps."""
        self.fresh, self.moved = False, True
        self.optimizer_steps = optimizer_steps

    def publish(self, version: int) -> bool:
        """Weights were published as a version. Whether the paired sampler can be told to serve
        them: it goes by the lowest version that will do, so not if it has served such a one of
        other weights, which loading a checkpoint can bring about; and version 0 is to it the base
        model."""
        if version < self.published or (version == 0 and not self.fresh):
            return False
        if version == self.published and self.moved and self.publication:
            return False
        if version != self.published or not self.publication:
            self.publication += 1
        self.published, self.moved = version, False
        return True

    def call(
        self,
        route: str,
        operation: str,
        body: Mapping[str, Any],
        *,
        within: float,
        look: str = "",
        effect: Effect = Effect.KEYED,
    ) -> Call:
        """An operation, which takes the next number. A number is used for one request alone, also
        if that is refused: so does the official client."""
        seq = self.next_seq
        self.next_seq += 1
        return Call(
            operation,
            f"{self.run.base_url}/{route}",
            {**body, "seq_id": seq, "run_id": self.run.run_id, "model": self.run.base_model},
            manners=TRAINER,
            effect=effect,
            look=look,
            headers={**self.headers, "idempotency-key": secrets.token_hex(16)},
            within=within,
            starting=0.0 if self.ready else STARTING_TIME,
        )
