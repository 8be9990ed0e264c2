"""A model as the core knows it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tinkergate.backends.base import ModelFacts
from tinkergate.core.operation_record import Record
from tinkergate.core.router import Route
from tinkergate.core.sequencer import Sequencer
from tinkergate.core.validation.facts import Facts
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ErrorReason, Model, ModelState, QueueState

MAX_SEQ_ID = (1 << 31) - 1

_STATE_WORDS = {
    ModelState.MODEL_STATE_UNLOADED: "was unloaded; its checkpoints are left, and a model can be "
    "created from one",
    ModelState.MODEL_STATE_FAILED: "could not be made",
    ModelState.MODEL_STATE_LOST: "was in the memory of a gateway that stopped; its checkpoints are "
    "left, and a model can be created from one",
}


class StepChange(Protocol):
    """An operation that changes how many optimizer steps a model has."""

    @property
    def settled(self) -> bool:
        """Whether it is done, well or not."""

    def steps_after(self, steps: int) -> int:
        """How many there are after it, if there were `steps` before."""


class ModelEntry:
    """One model."""

    def __init__(self, number: int, message: Model) -> None:
        self.number = number
        self.message = message
        """The model without `next_seq_id`, which `render` fills in."""

    @property
    def model_id(self) -> str:
        """The id."""
        return self.message.model_id

    @property
    def state(self) -> ModelState.ValueType:
        """Where it is in its life."""
        return self.message.state

    def render(self, next_seq_id: int = 0) -> Model:
        """The model as an answer; `message` itself goes on changing."""
        model = Model()
        model.CopyFrom(self.message)
        model.next_seq_id = min(next_seq_id, MAX_SEQ_ID)
        return model

    def not_ready(self) -> GatewayError:
        """Why it takes no operations."""
        return GatewayError(
            Kind.PRECONDITION,
            ErrorReason.ERROR_REASON_MODEL_NOT_READY,
            f"model {self.model_id!r} {_STATE_WORDS.get(self.state, 'is being unloaded')}",
            metadata={"state": ModelState.Name(self.state).removeprefix("MODEL_STATE_").lower()},
        )


class LiveModel:
    """What belongs to a model while a backend has it or is making it."""

    def __init__(
        self, entry: ModelEntry, route: Route, sequencer: Sequencer, create_record: Record
    ) -> None:
        self.entry = entry
        self.route = route
        self.facts: Facts = route.facts
        self.sequencer = sequencer
        self.create_record = create_record
        self.making: asyncio.Task[ModelFacts] | None = None
        self.making_error: GatewayError | None = None
        """Why the making was cancelled."""
        self._making_state: tuple[QueueState.ValueType, str] = (
            QueueState.QUEUE_STATE_ACTIVE,
            "",
        )
        self.unload_record: Record | None = None
        self.closing = False
        """Whether it takes no more operations, because it is being unloaded."""
        self.changing: list[StepChange] = []
        """Operations that were handed to the backend, in order, and are not counted yet: each
        changes the number of optimizer steps."""
        self._arrivals = 0

    @property
    def optimizer(self) -> str:
        """The kind of optimizer that it was made for."""
        return self.entry.message.optimizer_config.type

    def note_making(self, state: QueueState.ValueType, reason: str) -> None:
        """The backend said why the model is not ready yet."""
        self._making_state = (state, reason)

    def making_state(self) -> tuple[QueueState.ValueType, str]:
        """Why the model is not ready yet, with words for people."""
        return self._making_state

    def count_steps(self) -> None:
        """Count the operations that are done, as far as all before them are: results may come in
        another order than the model's own."""
        while self.changing and self.changing[0].settled:
            message = self.entry.message
            message.optimizer_steps = self.changing.pop(0).steps_after(message.optimizer_steps)

    def operation_part(self, seq_id: int | None) -> str:
        """The model's own part of a new operation's name: by seq_id, else by arrival."""
        if seq_id is not None:
            return str(seq_id)
        self._arrivals += 1
        return f"a{self._arrivals}"
