"""Models in training, and the order of their operations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinkergate.engine import checkpoint
from tinkergate.engine.adapters import LoraSpec
from tinkergate.engine.bases import LoadedBase
from tinkergate.engine.checkpoint import LoadedCheckpoint
from tinkergate.engine.distillation import Comparison
from tinkergate.engine.losses import Example, LossSettings
from tinkergate.engine.optimizer import AdamSettings
from tinkergate.engine.peft_format import mismatch, rank_and_alpha
from tinkergate.engine.rollout_correction import RolloutCorrection
from tinkergate.engine.scheduler import Handle, Queue, Scheduler, Work
from tinkergate.engine.snapshots import Snapshot
from tinkergate.engine.trainer import ForwardBackwardResult, ReverseKlResult, Trainer
from tinkergate.errors import ErrorReason, GatewayError, Kind

OnStart = Callable[[], None]

BASE_MODEL = "base_model"
LORA = "lora"
"""What is noted in a checkpoint's metadata beside the caller's notes: the base model's name, and
the fields of the `LoraSpec`."""


@dataclass(frozen=True)
class MadeModel:
    """A model as it was made."""

    spec: LoraSpec
    optimizer_steps: int


class _Model:
    """One model. `spec` and `trainer` are set when it is made."""

    spec: LoraSpec
    trainer: Trainer

    def __init__(
        self,
        model_id: str,
        loaded: LoadedBase,
        queue: Queue,
        correction: RolloutCorrection | None,
    ) -> None:
        self.model_id = model_id
        self.correction = correction
        self.adapter = loaded.new_name()
        """Not the model's id: a new model may have that while the old one is still being freed."""
        self.loaded = loaded
        self.queue = queue

    def make(self, spec: LoraSpec) -> None:
        """The adapter is there: get ready to train it."""
        self.spec = spec
        self.trainer = Trainer(
            self.loaded.base, self.loaded.adapters, self.adapter, correction=self.correction
        )


class Models:
    """All models in training. Operations of one model run in the order of the calls; those that
    come before the model is made wait for it. `on_start` is called, on the engine thread, when an
    operation begins."""

    def __init__(self, scheduler: Scheduler, files: Executor) -> None:
        self._scheduler = scheduler
        self._files = files
        self._lock = threading.Lock()
        self._models: dict[str, _Model] = {}

    def create(
        self,
        model_id: str,
        loaded: LoadedBase,
        spec: LoraSpec,
        *,
        correction: RolloutCorrection | None = None,
    ) -> Handle[MadeModel]:
        """Make a model with new weights."""

        def make(model: _Model) -> Work[MadeModel]:
            yield from ()
            loaded.adapters.create(model.adapter, spec)
            model.make(spec)
            return MadeModel(spec, 0)

        return self._create(model_id, loaded, make, correction)

    def create_from(
        self,
        model_id: str,
        loaded: LoadedBase,
        folder: Path,
        *,
        with_optimizer: bool,
        correction: RolloutCorrection | None = None,
    ) -> Handle[MadeModel]:
        """Make a model of a checkpoint."""

        def make(model: _Model) -> Work[MadeModel]:
            reading = self._files.submit(read_checkpoint, folder, loaded.base.name, with_optimizer)
            yield reading
            read = reading.result()
            loaded.adapters.add(model.adapter, read.adapter_config, read.weights, trainable=True)
            seed = read.metadata.get(LORA, {}).get("seed", 0)
            spec = replace(loaded.adapters.spec(model.adapter), seed=seed)
            model.make(spec)
            model.trainer.load_state(read.weights, read.optimizer)
            return MadeModel(spec, model.trainer.optimizer_steps)

        return self._create(model_id, loaded, make, correction)

    def _create(
        self,
        model_id: str,
        loaded: LoadedBase,
        make: Callable[[_Model], Work[MadeModel]],
        correction: RolloutCorrection | None,
    ) -> Handle[MadeModel]:
        model = _Model(model_id, loaded, Queue(self._scheduler, model_id), correction)
        with self._lock:
            if model_id in self._models:
                raise ValueError(f"there is a model {model_id!r} already")
            self._models[model_id] = model

        def work() -> Work[MadeModel]:
            try:
                return (yield from make(model))
            except BaseException:
                loaded.adapters.delete(model.adapter)
                raise

        handle = model.queue.submit(work)
        handle.future.add_done_callback(lambda future: self._created(model, future))
        return handle

    def _created(self, model: _Model, future: Future[MadeModel]) -> None:
        """A model that could not be made leaves nothing behind."""
        if future.exception() is not None:
            with self._lock:
                self._models.pop(model.model_id, None)
            model.queue.close(unknown_model(model.model_id))

    def unload(self, model_id: str) -> Handle[None] | None:
        """Free a model, after the operations that were submitted before. None if there is none."""
        with self._lock:
            model = self._models.pop(model_id, None)
        if model is None:
            return None

        def free() -> None:
            del model.trainer
            model.loaded.adapters.delete(model.adapter)
            model.queue.close(unknown_model(model_id))

        return model.queue.call(free)

    def forward_backward(
        self,
        model_id: str,
        examples: Sequence[Example],
        loss_fn: str,
        config: LossSettings,
        *,
        backward: bool,
        per_token: bool = False,
        on_start: OnStart | None = None,
    ) -> Handle[ForwardBackwardResult]:
        """See `Trainer.forward_backward`. Can be cancelled while it runs."""
        model = self._model(model_id)

        def work() -> Work[ForwardBackwardResult]:
            return model.trainer.forward_backward(
                examples, loss_fn, config, backward=backward, per_token=per_token
            )

        return model.queue.submit(work, on_start=on_start)

    def reverse_kl(
        self,
        model_id: str,
        texts: Sequence[Comparison],
        reference: Snapshot,
        temperature: float,
        *,
        on_start: OnStart | None = None,
    ) -> Handle[ReverseKlResult]:
        """See `Trainer.reverse_kl`. Can be cancelled while it runs. The reference is held as long
        as it is needed. Raises GatewayError if it is on another base model."""
        model = self._model(model_id)
        if reference.loaded is not model.loaded:
            theirs, ours = reference.loaded.base.name, model.loaded.base.name
            raise mismatch(f"the reference is on base model {theirs!r}; the model is on {ours!r}")

        def work() -> Work[ReverseKlResult]:
            return model.trainer.reverse_kl(texts, reference.adapter, temperature)

        return reference.held(lambda: model.queue.submit(work, on_start=on_start))

    def optim_step(
        self, model_id: str, settings: AdamSettings, *, on_start: OnStart | None = None
    ) -> Handle[dict[str, float]]:
        """See `Trainer.optim_step`."""
        model = self._model(model_id)
        return model.queue.call(lambda: model.trainer.optim_step(settings), on_start=on_start)

    def save(
        self,
        model_id: str,
        folder: Path,
        *,
        with_optimizer: bool,
        overwrite: bool,
        metadata: Mapping[str, Any],
        on_start: OnStart | None = None,
    ) -> Handle[int]:
        """Write a checkpoint of the model as it is when its turn comes; see `checkpoint.save`.
        Answers its size in bytes."""
        model = self._model(model_id)

        def work() -> Work[int]:
            # A copy: the weights move on while it is written.
            weights, optimizer = model.trainer.state()
            writing = self._files.submit(
                checkpoint.save,
                folder,
                adapter_config=model.loaded.adapters.peft_config(model.adapter),
                weights=weights,
                optimizer=optimizer if with_optimizer else None,
                metadata=noted(metadata, model.loaded.base.name, model.spec),
                overwrite=overwrite,
            )
            yield writing
            return writing.result()

        return model.queue.submit(work, on_start=on_start, interruptible=False)

    def load_state(
        self,
        model_id: str,
        folder: Path,
        *,
        with_optimizer: bool,
        on_start: OnStart | None = None,
    ) -> Handle[int]:
        """Replace the model's weights by a checkpoint's. Answers the optimizer steps that it has
        now taken. Can be cancelled while the files are read."""
        model = self._model(model_id)

        def work() -> Work[int]:
            base_model = model.loaded.base.name
            reading = self._files.submit(read_checkpoint, folder, base_model, with_optimizer)
            yield reading
            read = reading.result()
            theirs, ours = rank_and_alpha(read.adapter_config), (model.spec.rank, model.spec.alpha)
            if theirs != ours:
                raise mismatch(
                    "the checkpoint has rank {} and alpha {:g}".format(*theirs)
                    + "; the model has rank {} and alpha {:g}".format(*ours)
                )
            model.trainer.load_state(read.weights, read.optimizer)
            return model.trainer.optimizer_steps

        return model.queue.submit(work, on_start=on_start)

    def freeze(self, model_id: str, *, on_start: OnStart | None = None) -> Handle[Snapshot]:
        """A snapshot of the model's weights as they are when its turn comes."""
        model = self._model(model_id)

        def work() -> Snapshot:
            name = model.loaded.new_name()
            model.loaded.adapters.snapshot(model.adapter, name)
            return Snapshot(model.loaded, name)

        return model.queue.call(work, on_start=on_start)

    def _model(self, model_id: str) -> _Model:
        with self._lock:
            model = self._models.get(model_id)
        if model is None:
            raise unknown_model(model_id)
        return model


def unknown_model(model_id: str) -> GatewayError:
    """There is no such model, or no more."""
    return GatewayError(
        Kind.PRECONDITION,
        ErrorReason.ERROR_REASON_MODEL_NOT_READY,
        f"model {model_id!r} is not in the engine's memory",
    )


def noted(metadata: Mapping[str, Any], base_model: str, spec: LoraSpec) -> dict[str, Any]:
    """A checkpoint's metadata: the caller's, and what reading it again needs."""
    return {**metadata, BASE_MODEL: base_model, LORA: vars(spec)}


def read_checkpoint(folder: Path, base_model: str, with_optimizer: bool) -> LoadedCheckpoint:
    """Read a checkpoint for a base model. Raises GatewayError if it is another's, or lacks the
    optimizer state that is wanted."""
    read = checkpoint.load(folder, with_optimizer=with_optimizer)
    theirs = read.metadata.get(BASE_MODEL)
    if theirs != base_model:
        raise mismatch(f"the checkpoint belongs on base model {theirs!r}; must be {base_model!r}")
    if with_optimizer and read.optimizer is None:
        raise mismatch("the checkpoint holds no optimizer state; load it without")
    return read
