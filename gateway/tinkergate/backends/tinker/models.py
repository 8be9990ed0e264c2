"""Models at the service: making them, from nothing or from a checkpoint, and freeing them (wire
sections 5.1, 5.2, 5.8 to 5.10 and 13.4).

A model of the gateway keeps its name while the model at the service that stands behind it may
change. When nobody knows any more what a model there has gone through (the answer to a training
operation was lost for good, or the service has lost the model), it takes no more operations; the
next LoadState gives the gateway's model a fresh one, made of the checkpoint. So whatever was under
way to the old one can do no harm.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tinkergate.backends.base import ModelFacts, ModelSpec
from tinkergate.backends.errands import Errands
from tinkergate.backends.known_checkpoints import KnownCheckpoint, KnownCheckpoints
from tinkergate.backends.tinker.futures import Accepted, FutureLost, Futures, accepted
from tinkergate.backends.tinker.service import Call, Effect, Service, nothing
from tinkergate.backends.tinker.sessions import UpstreamSession, UpstreamSessions
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.read_results import lora_from_weights_info
from tinkergate.dialects.tinker.write_requests import (
    load_json,
    lora_json,
    optimizer_json,
    rollout_correction_json,
)
from tinkergate.errors import ErrorReason, GatewayError, Kind, unsupported
from tinkergate.http import Answer
from tinkergate.v1 import CheckpointSource, LoraConfig, OptimizerConfig, QueueState

T = TypeVar("T")

ADAMW = "adamw"
CANON_ALPHA = 32.0
"""The only scale of an adapter, alpha / rank, that the dialect has."""
UNLOAD_TIME = 30.0
"""How long the freeing of a model is tried, in seconds. The end of the session frees it too."""
LOAD_TRIES = 3
"""How many models are made in order to load a checkpoint into a fresh one."""


@dataclass
class UpstreamModel:
    """A model of the gateway and the one at the service behind it."""

    model_id: str
    session: UpstreamSession
    base_model: str
    optimizer_config: OptimizerConfig
    rollout_correction: dict[str, Any] | None
    user_metadata: Mapping[str, str]
    upstream_id: str = ""
    lora_config: LoraConfig = field(default_factory=LoraConfig)
    next_seq: int = 1
    """The seq_id of the next operation: the service's numbers have no holes."""
    optimizer_steps: int = 0
    doubt: str = ""
    """Why nobody knows what it has gone through; empty if that is known."""
    running: set[asyncio.Future[Any]] = field(default_factory=set)
    """Operations that the service has accepted and that are not done."""

    @property
    def session_key(self) -> str:
        """The session of the gateway that owns it."""
        return session_key(self.model_id)

    def doubted(self, why: str) -> None:
        """Nobody knows any more what it has gone through."""
        self.doubt = self.doubt or why


def session_key(owned_id: str) -> str:
    """The session of the gateway that owns a model or sampler, by the id of that."""
    return owned_id.rsplit(":", 2)[0]


def unnoticed(state: QueueState.ValueType, reason: str) -> None:
    """For work whose queue nobody asks after."""


class UpstreamModels:
    """All models that the gateway has at the service."""

    def __init__(
        self,
        service: Service,
        futures: Futures,
        sessions: UpstreamSessions,
        checkpoints: KnownCheckpoints,
        errands: Errands,
    ) -> None:
        self._service = service
        self._futures = futures
        self._sessions = sessions
        self._checkpoints = checkpoints
        self._errands = errands
        self._models: dict[str, UpstreamModel] = {}
        self._mint = service.settings.dialect == "mint"

    def require(self, model_id: str) -> UpstreamModel:
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
        self._check(spec)
        session = await self._sessions.use(session_key(spec.model_id))
        correction = spec.rollout_correction
        model = UpstreamModel(
            spec.model_id,
            session,
            spec.base_model,
            spec.optimizer_config,
            None if correction is None else rollout_correction_json(correction),
            spec.user_metadata,
        )
        try:
            if spec.checkpoint is None:
                model.lora_config.CopyFrom(_with_defaults(spec.lora_config))
                await self._create_new(model)
            else:
                await self._create_from(model, spec.checkpoint)
            facts = await self._facts(model, max_context_length)
        except BaseException:
            self._let_go(model)
            raise
        self._models[spec.model_id] = model
        return facts

    def _check(self, spec: ModelSpec) -> None:
        name = self._service.name
        alpha = spec.lora_config.alpha if spec.lora_config.HasField("alpha") else CANON_ALPHA
        if alpha != CANON_ALPHA:
            raise unsupported(f"a LoRA alpha other than {CANON_ALPHA:g}", name)
        if self._mint and (spec.optimizer_config.type or ADAMW) != ADAMW:
            raise unsupported(f"the optimizer {spec.optimizer_config.type!r}", name)
        if not self._mint and spec.rollout_correction is not None:
            raise unsupported("rollout_correction", name)

    async def _create_new(self, model: UpstreamModel) -> None:
        """Make a model with a fresh adapter."""
        body: dict[str, Any] = {
            "session_id": model.session.session_id,
            "model_seq_id": model.session.next_model(),
            "base_model": model.base_model,
            "user_metadata": dict(model.user_metadata),
            "lora_config": lora_json(model.lora_config),
            "type": "create_model",
        }
        if not self._mint:
            body["optimizer_config"] = optimizer_json(model.optimizer_config)
        if model.rollout_correction is not None:
            body["rollout_correction_config"] = model.rollout_correction
        call = Call(f"create_model of {model.model_id}", "create_model", body)
        await self._make(model, call, "CreateModel")

    async def _make(self, model: UpstreamModel, call: Call, request_type: str) -> None:
        """Have a model made. A second one, made because the answer on the first was lost, is freed
        by the service with the session."""
        work = await self._service.call(call, accepted(call, request_type))
        model.upstream_id = work.model_id  # to be freed, should this be cancelled
        model.next_seq = 1

        def read(answer: Answer) -> str:
            told = Fields(read_json(answer.body)).optional_text("model_id") or work.model_id
            if not told:
                raise self._service.broken(call.operation, "names no model", work.request_id)
            return told

        model.upstream_id = await self._result(work, read)

    async def _result(self, work: Accepted, read: Callable[[Answer], T]) -> T:
        try:
            return await self._futures.result(work, read, on_state=unnoticed)
        except FutureLost as lost:
            raise lost.error from None

    async def _create_from(self, model: UpstreamModel, source: CheckpointSource) -> None:
        """Make a model of a checkpoint."""
        known = self._checkpoints.find(source.path)
        model.optimizer_steps = known.optimizer_steps if source.with_optimizer else 0
        if self._mint:
            # There is neither weights_info nor a load that creates (wire section 13.4).
            model.lora_config.CopyFrom(known.lora_config)
            if not model.lora_config.HasField("rank"):
                raise self._service.broken(
                    f"create_model of {model.model_id}",
                    f"needs the rank of checkpoint {source.path!r}, which nobody knows",
                )
            await self._create_and_load(model, known.upstream_path, source.with_optimizer)
            return
        model.lora_config.CopyFrom(await self._adapter_of(known))
        body: dict[str, Any] = {
            "session_id": model.session.session_id,
            "model_seq_id": model.session.next_model(),
            "path": known.upstream_path,
            "optimizer": source.with_optimizer,
            "base_model": model.base_model,
            "user_metadata": dict(model.user_metadata),
            "optimizer_config": optimizer_json(model.optimizer_config),
            "type": "load_weights",
        }
        call = Call(f"create_model of {model.model_id} from {source.path}", "load_weights", body)
        await self._make(model, call, "LoadWeights")

    async def _create_and_load(self, model: UpstreamModel, path: str, optimizer: bool) -> None:
        """Make a model and load a checkpoint into it. A load that may have arrived is not sent
        again: it could take effect late, after steps on top of the second. Another model is made
        instead."""
        for left in reversed(range(LOAD_TRIES)):
            await self._create_new(model)
            call = Call(
                f"load_weights of {model.model_id}",
                "load_weights",
                load_json(model.upstream_id, model.next_seq, path, optimizer=optimizer),
                effect=Effect.ONCE,
            )
            try:
                work = await self._service.call(call, accepted(call, "LoadWeights"))
                model.next_seq += 1
                await self._result(work, nothing)
            except GatewayError as error:
                if not left or error.kind is not Kind.OUTCOME_UNKNOWN:
                    raise
                self._errands.run(self._unload(model.upstream_id), f"freeing {model.upstream_id}")
            else:
                return

    async def _adapter_of(self, known: KnownCheckpoint) -> LoraConfig:
        """A checkpoint's adapter, as the service tells it."""
        call = Call("weights_info", "weights_info", {"tinker_path": known.upstream_path})
        told = await self._service.call(call, lambda answer: lora_from_weights_info(answer.body))
        config = LoraConfig()
        config.CopyFrom(known.lora_config)
        config.MergeFrom(told)
        return _with_defaults(config, seed=False)

    async def _facts(self, model: UpstreamModel, max_context_length: int) -> ModelFacts:
        call = Call(
            f"get_info of {model.model_id}",
            "get_info",
            {"model_id": model.upstream_id, "type": "get_info"},
        )

        def read(answer: Answer) -> ModelFacts:
            fields = Fields(read_json(answer.body))
            data = fields.fields("model_data")
            name = data.optional_text("model_name") or model.base_model
            return ModelFacts(
                lora_config=model.lora_config,
                tokenizer_id=data.optional_text("tokenizer_id") or name,
                arch=data.optional_text("arch") or "",
                vocab_size=0,
                max_context_length=max_context_length,
                optimizer_steps=model.optimizer_steps,
            )

        return await self._service.call(call, read)

    async def remake(self, model: UpstreamModel, source: CheckpointSource) -> None:
        """Give a model a fresh one at the service, made of a checkpoint. The old one takes nothing
        any more, and is freed."""
        old = model.upstream_id
        # One use more and one less: the session may have ended, and is opened anew then.
        model.session = await self._sessions.use(model.session_key)
        self._sessions.release(model.session_key)
        fresh = UpstreamModel(
            model.model_id,
            model.session,
            model.base_model,
            model.optimizer_config,
            model.rollout_correction,
            model.user_metadata,
        )
        try:
            await self._create_from(fresh, source)
        except BaseException:
            if fresh.upstream_id:
                self._errands.run(self._unload(fresh.upstream_id), f"freeing {fresh.upstream_id}")
            raise
        model.upstream_id = fresh.upstream_id
        model.next_seq = fresh.next_seq
        model.optimizer_steps = fresh.optimizer_steps
        model.doubt = ""
        self._errands.run(self._unload(old), f"freeing {old}")

    async def unload(self, model_id: str) -> None:
        """Free a model, after what of it is still running. Unknown ids are no error."""
        model = self._models.pop(model_id, None)
        if model is None:
            return
        if model.running:
            await asyncio.wait(model.running)
        try:
            await self._unload(model.upstream_id)
        finally:
            self._sessions.release(model.session_key)

    def _let_go(self, model: UpstreamModel) -> None:
        """A model that did not come about after all."""
        if model.upstream_id:
            self._errands.run(self._unload(model.upstream_id), f"freeing {model.upstream_id}")
        self._sessions.release(model.session_key)

    async def _unload(self, upstream_id: str) -> None:
        """Have the service free a model, if it can; else the end of the session does."""
        if self._mint:
            call = Call(
                f"freeing model {upstream_id}",
                f"models/{upstream_id}",
                method="DELETE",
                within=UNLOAD_TIME,
            )
            await self._service.quietly(call)
            return
        call = Call(
            f"unload_model of {upstream_id}",
            "unload_model",
            {"model_id": upstream_id, "type": "unload_model"},
            patience=UNLOAD_TIME,
        )
        try:
            work = await self._service.call(call, accepted(call, "UnloadModel"))
            await self._result(work, nothing)
        except GatewayError as error:
            self._service.note(f"freeing model {upstream_id}", error)


def _with_defaults(config: LoraConfig, *, seed: bool = True) -> LoraConfig:
    """The adapter with every default filled in. Without a seed, one is drawn that every service
    takes, unless there is none to be had (`seed` is False)."""
    filled = LoraConfig(rank=32, train_mlp=True, train_attn=True, train_unembed=True)
    filled.alpha = CANON_ALPHA
    if seed:
        filled.seed = secrets.randbits(31)
    filled.MergeFrom(config)
    return filled
