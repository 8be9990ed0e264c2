"""Training runs: the models that the gateway remembers, and those of which only checkpoints are
left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tinkergate.core.checkpoint_registry import CheckpointRegistry
from tinkergate.core.clock import nanoseconds
from tinkergate.core.ids import session_of
from tinkergate.core.model_book import ModelBook
from tinkergate.core.paging import Window, window
from tinkergate.core.sessions import Sessions
from tinkergate.errors import GatewayError
from tinkergate.v1 import Checkpoint, CheckpointType, Model, ModelState


@dataclass(frozen=True)
class TrainingRun:
    """One training run."""

    model: Model
    """Of an imported adapter, of a copy that no session owns, and of a model whose session is
    forgotten, what its checkpoints tell: such a model is unloaded."""
    last_checkpoint: Checkpoint | None
    """The newest that training can go on from."""
    last_sampler_checkpoint: Checkpoint | None


class TrainingRuns:
    """Looks at training runs."""

    def __init__(self, sessions: Sessions, book: ModelBook, registry: CheckpointRegistry) -> None:
        self._sessions = sessions
        self._book = book
        self._registry = registry
        registry.on_remove.append(self._checkpoint_removed)

    def get(self, model_id: str) -> TrainingRun:
        """One training run. Raises NOT_FOUND."""
        held = [entry.message for entry in self._registry.of_model(model_id)]
        try:
            entry = self._book.require(model_id)
        except GatewayError:
            if not held:
                raise
            return _run(_left(held), held)
        self._sessions.heard(entry.message.session_id)
        return _run(self._book.render(entry), held)

    def window(self, offset: int, limit: int, project_id: str = "") -> Window[TrainingRun]:
        """The training runs from place `offset` on, newest first; those of one project if it is
        given. Raises INVALID."""
        held: dict[str, list[Checkpoint]] = {}
        for entry in self._registry.newest_first():
            held.setdefault(entry.message.model_id, []).append(entry.message)
        runs = [_run(e.message, held.pop(e.model_id, ())) for e in self._book.newest_first()]
        runs += [_run(_left(left), left) for left in held.values()]
        runs.sort(key=lambda run: nanoseconds(run.model.create_time), reverse=True)
        if project_id:
            runs = [run for run in runs if self._project_of(run) == project_id]
        return window(runs, offset, limit).map(self._rendered)

    def _checkpoint_removed(self, gone: Checkpoint) -> None:
        """The newest checkpoints that a model tells are among those that there are."""
        if gone.model_id not in self._book:
            return
        entry = self._book.require(gone.model_id)
        told = entry.message
        if gone.path in (told.last_checkpoint, told.last_sampler_checkpoint):
            run = _run(told, [left.message for left in self._registry.of_model(gone.model_id)])
            told.last_checkpoint = run.last_checkpoint.path if run.last_checkpoint else ""
            last_sampler = run.last_sampler_checkpoint
            told.last_sampler_checkpoint = last_sampler.path if last_sampler else ""
            self._book.note(entry)

    def _rendered(self, run: TrainingRun) -> TrainingRun:
        """The run as an answer: the book's own messages go on changing."""
        if run.model.model_id not in self._book:
            return run
        entry = self._book.require(run.model.model_id)
        return replace(run, model=self._book.render(entry))

    def _project_of(self, run: TrainingRun) -> str:
        return self._sessions.project_of(session_of(run.model.model_id))


def _run(model: Model, newest_first: Iterable[Checkpoint]) -> TrainingRun:
    last: dict[int, Checkpoint] = {}
    for checkpoint in newest_first:
        last.setdefault(checkpoint.type, checkpoint)
    return TrainingRun(
        model,
        last.get(CheckpointType.CHECKPOINT_TYPE_TRAINING),
        last.get(CheckpointType.CHECKPOINT_TYPE_SAMPLER),
    )


def _left(newest_first: list[Checkpoint]) -> Model:
    """The model whose checkpoints are left."""
    newest, oldest = newest_first[0], newest_first[-1]
    return Model(
        model_id=newest.model_id,
        base_model=newest.base_model,
        backend=newest.backend,
        state=ModelState.MODEL_STATE_UNLOADED,
        lora_config=newest.lora_config,
        optimizer_config=newest.optimizer_config,
        create_time=oldest.create_time,
        last_request_time=newest.create_time,
    )
