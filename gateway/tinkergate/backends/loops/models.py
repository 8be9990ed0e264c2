"""Models at Loops: made of nothing or of a checkpoint, and let go (wire sections 5.3 and 13.1).

A model of the gateway keeps its name while the trainer that stands behind it may change. When
nobody knows any more what a trainer has gone through (the answer to a training operation was lost
for good, a part of a batch failed, or the service has lost the trainer), the model takes no more
operations; the next LoadState gives it a fresh trainer, loaded with the checkpoint. So whatever was
under way to the old one can do no harm.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Any

from tinkergate.backends.base import ModelFacts, ModelSpec, OnQueueState
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.loops.control import Control
from tinkergate.backends.loops.operations import OperationLost, Operations, accepted
from tinkergate.backends.loops.service import Service
from tinkergate.backends.loops.trainer import Trainer
from tinkergate.backends.loops.trainers import Trainers
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import ErrorReason, GatewayError, Kind, unsupported
from tinkergate.v1 import CheckpointSource, LoraConfig, OptimizerConfig, QueueState

CANON_ALPHA = 32.0
"""The only scale of an adapter, alpha / rank, that can be asked for."""
DEFAULT_RANK = 32
"""The canon's; Loops' own is another, so it is always said."""


@dataclass
class LoopsModel:
    """A model of the gateway and the trainer behind it."""

    model_id: str
    base_model: str
    """By the name that it was asked for."""
    optimizer_config: OptimizerConfig
    trainer: Trainer
    lora_config: LoraConfig
    running: set[asyncio.Future[Any]] = field(default_factory=set)
    """Operations that the service has accepted and that are not done."""


class UpstreamModels:
    """All models that the gateway has at the service."""

    def __init__(
        self,
        service: Service,
        control: Control,
        trainers: Trainers,
        operations: Operations,
        checkpoints: KnownCheckpoints,
    ) -> None:
        self._service = service
        self._control = control
        self._trainers = trainers
        self._operations = operations
        self._checkpoints = checkpoints
        self._models: dict[str, LoopsModel] = {}

    def require(self, model_id: str) -> LoopsModel:
        """The model of that id. Raises NOT_FOUND."""
        model = self._models.get(model_id)
        if model is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_MODEL_NOT_FOUND,
                f"backend {self._service.name!r} has no model {model_id!r}",
                backend=self._service.name,
            )
        return model

    async def create(self, spec: ModelSpec, max_context_length: int) -> ModelFacts:
        """Make a model. `max_context_length` is the base model's."""
        notes: tuple[str, ...] = ()
        if spec.checkpoint is None:
            config, notes = self._adapter(spec)
            trainer = await self._trainers.make(
                spec.model_id, spec.base_model, config.rank, spec.on_state, seed=config.seed
            )
            try:
                await self._init(trainer, config.rank)
            except BaseException:
                self._trainers.release(trainer)
                raise
        else:
            trainer, config = await self._made_from(
                spec.model_id, spec.base_model, spec.checkpoint, spec.on_state
            )
        model = LoopsModel(spec.model_id, spec.base_model, spec.optimizer_config, trainer, config)
        self._models[spec.model_id] = model
        return ModelFacts(
            lora_config=config,
            tokenizer_id=_tokenizer(trainer),
            arch="",
            vocab_size=0,
            max_context_length=max_context_length,
            optimizer_steps=trainer.optimizer_steps,
            notes=notes,
        )

    def _adapter(self, spec: ModelSpec) -> tuple[LoraConfig, tuple[str, ...]]:
        """The adapter that Loops makes where one was asked for, and where it differs. What was
        asked for on purpose and cannot be had is refused: what no default would say, or anything if
        the caller insists."""
        asked, name = spec.lora_config, self._service.name
        if asked.HasField("alpha") and asked.alpha != CANON_ALPHA:
            raise unsupported(f"a LoRA alpha other than {CANON_ALPHA:g}", name)
        made = LoraConfig(rank=DEFAULT_RANK, alpha=CANON_ALPHA, seed=secrets.randbits(31))
        made.MergeFrom(asked)
        notes = []
        refused = {field.name for field, value in asked.ListFields() if value is False}
        for part, trained in _coverage(spec.base_model).items():
            wanted = part not in refused
            setattr(made, part, trained)
            if wanted == trained:
                continue
            if not wanted or spec.exact_adapter:
                raise unsupported(
                    f"{part} = {str(wanted).lower()}: Loops trains what it trains, which is "
                    + ", ".join(each for each, on in _coverage(spec.base_model).items() if on),
                    name,
                )
            notes.append(f"{part} is false: Loops does not train that part of {spec.base_model}")
        return made, tuple(notes)

    async def _init(self, trainer: Trainer, rank: int) -> None:
        """Give a trainer a fresh adapter."""
        made = await self._do(
            trainer,
            "init_trainer_server",
            {"lora_rank": rank, "base_model": trainer.run.base_model},
            lambda fields: fields.integer("lora_rank"),
        )
        if made != rank:
            raise self._service.broken(
                f"making {trainer.model_id}",
                f"made rank {made} where {rank} was said",
            )

    async def _do(self, trainer: Trainer, route: str, body: dict[str, Any], read: Any) -> Any:
        """An operation of a trainer that nothing else happens to meanwhile."""
        call = trainer.call(
            route,
            f"{route} of model {trainer.model_id}",
            body,
            within=self._service.settings.submit_timeout,
        )
        work = await self._service.call(call, accepted(call, trainer.run.base_url))
        trainer.ready = True
        try:
            return await self._operations.result(work, read, lambda: None)
        except OperationLost as lost:
            raise lost.error from None

    async def _made_from(
        self, model_id: str, base_model: str, source: CheckpointSource, on_state: OnQueueState
    ) -> tuple[Trainer, LoraConfig]:
        """A trainer with a checkpoint, and its adapter."""
        known = self._checkpoints.find(source.path)
        stored = await self._control.checkpoint(known.upstream_path)
        config = LoraConfig(alpha=CANON_ALPHA, **_coverage(base_model))
        config.MergeFrom(known.lora_config)
        config.rank = stored.rank or known.lora_config.rank
        if not config.rank:
            raise self._service.broken(
                f"making {model_id}",
                f"needs the rank of checkpoint {source.path!r}, which nobody knows",
            )
        trainer = await self._trainers.make(
            model_id, base_model, config.rank, on_state, path=known.upstream_path
        )
        try:
            # A new trainer has a fresh adapter, made of a path or not.
            await self._init(trainer, config.rank)
            route = "load_state_with_optimizer" if source.with_optimizer else "load_state"
            body = {"path": known.upstream_path}
            step = await self._do(trainer, route, body, read_step)
        except BaseException:
            self._trainers.release(trainer)
            raise
        trainer.loaded(step if source.with_optimizer else 0)
        return trainer, config

    async def remake(self, model: LoopsModel, source: CheckpointSource) -> None:
        """Give a model a fresh trainer with a checkpoint. The old one takes nothing any more, and
        is stopped."""
        old = model.trainer
        trainer, _ = await self._made_from(model.model_id, model.base_model, source, _unwatched)
        model.trainer = trainer
        self._trainers.release(old)

    async def unload(self, model_id: str) -> None:
        """Let go of a model, after what of it is still running. Its trainer is stopped, unless
        samplers of it are still used. Unknown ids are no error."""
        model = self._models.pop(model_id, None)
        if model is None:
            return
        if model.running:
            await asyncio.wait(model.running)
        self._trainers.release(model.trainer)


def _coverage(base_model: str) -> dict[str, bool]:
    """Which parts Loops' adapters train (wire section 13.1)."""
    kimi_vl = all(part in base_model.lower() for part in ("kimi", "vl"))
    return {"train_mlp": not kimi_vl, "train_attn": True, "train_unembed": kimi_vl}


def _tokenizer(trainer: Trainer) -> str:
    """What to load the tokenizer by: the base checkpoint's repository, if one is told."""
    told = trainer.run.base_checkpoint
    repository = told.removeprefix("hf://").partition("@")[0]
    return repository if told.startswith("hf://") and repository else trainer.run.base_model


def read_step(fields: Fields) -> int:
    """The result of a load: the steps that the trainer has taken."""
    return fields.optional_integer("step", bits=64) or 0


def _unwatched(state: QueueState.ValueType, reason: str) -> None:
    """For trainers whose making nobody watches."""
