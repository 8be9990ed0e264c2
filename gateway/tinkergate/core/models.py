"""ModelService: making models, looking at them, unloading them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

from tinkergate.backends.base import Backend, ModelFacts, ModelSpec
from tinkergate.core.admission import Admission
from tinkergate.core.background import Background
from tinkergate.core.checkpoint_registry import CheckpointEntry, CheckpointRegistry
from tinkergate.core.clock import Clock, set_time
from tinkergate.core.faults import as_gateway_error
from tinkergate.core.identity import conflict, request_hash
from tinkergate.core.ids import model_id, operation_name
from tinkergate.core.model_book import ModelBook
from tinkergate.core.model_entry import LiveModel
from tinkergate.core.operation_record import Record
from tinkergate.core.operation_table import OperationTable
from tinkergate.core.paging import page
from tinkergate.core.router import Route, Router
from tinkergate.core.sequencer import Sequencer
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.core.unloading import UnloadTurn
from tinkergate.core.validation.facts import Facts
from tinkergate.core.validation.mint import check_rollout_correction
from tinkergate.core.validation.models import ADAMW, check_create_model, check_model_config
from tinkergate.errors import GatewayError, Kind, cancelled, invalid_field
from tinkergate.v1 import (
    CheckpointSource,
    CreateModelRequest,
    CreateModelResult,
    ErrorReason,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    LoraConfig,
    Model,
    ModelState,
    Operation,
    OperationKind,
    OptimizerConfig,
    UnloadModelRequest,
    UnloadModelResult,
)


class Models:
    """The RPCs of ModelService, and what the end of a session or of the gateway does to models."""

    def __init__(
        self,
        settings: CoreSettings,
        clock: Clock,
        admission: Admission,
        router: Router,
        sessions: Sessions,
        table: OperationTable,
        book: ModelBook,
        registry: CheckpointRegistry,
        background: Background,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._admission = admission
        self._router = router
        self._sessions = sessions
        self._table = table
        self._book = book
        self._registry = registry
        self._background = background
        sessions.on_end.append(self._session_ended)
        sessions.on_forget.append(self._session_forgotten)

    async def create(self, request: CreateModelRequest) -> Operation:
        """Answer CreateModel."""
        check_create_model(request)
        identity = _create_identity(request)
        hashed = request_hash(request) if identity else b""
        known = self._table.repeated(identity, hashed) if identity else None
        if known is None:
            self._sessions.require_active(request.session_id)
            self._admission.check()
            route, source = await self._route(request)
            check_model_config(request.lora_config, request.optimizer_config, route.facts.abilities)
            check_rollout_correction(request, route.facts.abilities)
            # Others ran while the route was looked up.
            known = self._table.repeated(identity, hashed) if identity else None
        if known is not None:
            self._sessions.heard(request.session_id)
            return known.fill(Operation())
        self._sessions.require_active(request.session_id)
        return self._make(request, route, source, identity, hashed).fill(Operation())

    async def _route(self, request: CreateModelRequest) -> tuple[Route, CheckpointSource | None]:
        if request.WhichOneof("source") == "base_model":
            return await self._router.route_to_train(request.base_model, request.backend), None
        entry = self._registry.require(request.checkpoint.path)
        held_by = entry.message.backend
        if request.backend not in ("", held_by):
            raise invalid_field(
                "backend", f'is "{request.backend}"; the checkpoint is on "{held_by}"'
            )
        entry.check_optimizer(request.checkpoint.with_optimizer)
        route = await self._router.route_to_train(entry.message.base_model, held_by)
        return route, request.checkpoint

    def _make(
        self,
        request: CreateModelRequest,
        route: Route,
        source: CheckpointSource | None,
        identity: str,
        hashed: bytes,
    ) -> Record:
        """Have the backend make the model."""
        new_id = self._new_id(request)
        backend = route.backend
        optimizer = OptimizerConfig()
        optimizer.CopyFrom(request.optimizer_config)
        optimizer.type = optimizer.type or ADAMW
        corrected = request.HasField("rollout_correction")
        correction = request.rollout_correction if corrected else None
        message = Model(
            model_id=new_id,
            session_id=request.session_id,
            base_model=route.model.name,
            backend=backend.name,
            state=ModelState.MODEL_STATE_CREATING,
            lora_config=request.lora_config,
            optimizer_config=optimizer,
            user_metadata=request.user_metadata,
            tokenizer_id=route.model.tokenizer_id,
            vocab_size=route.facts.vocab_size,
            max_context_length=route.facts.max_context_length,
            rollout_correction=correction,
        )
        set_time(message.create_time, self._clock.now())
        set_time(message.last_request_time, self._clock.now())
        entry = self._book.add(message)
        self._sessions.note_model(request.session_id, new_id)
        record = self._table.add(
            name=operation_name(new_id, "create"),
            kind=OperationKind.OPERATION_KIND_CREATE_MODEL,
            model_id=new_id,
            identity=identity,
            request_hash=hashed,
        )
        depth = backend.capabilities().pipeline_depth
        sequencer = Sequencer(new_id, depth, self._settings, self._admission)
        live = LiveModel(entry, route, sequencer, record)
        self._book.enter(live)
        spec = ModelSpec(
            model_id=new_id,
            base_model=route.upstream_name,
            lora_config=request.lora_config if source is None else LoraConfig(),
            optimizer_config=optimizer,
            checkpoint=source,
            user_metadata=dict(request.user_metadata),
            rollout_correction=correction,
            exact_adapter=request.exact_adapter,
            on_state=live.note_making,
        )
        self._table.start(record)
        record.queue_state = live.making_state
        record.cancel = partial(_cancel_making, live, cancelled())
        begun_from = None if source is None else self._registry.require(source.path)
        live.making = asyncio.get_running_loop().create_task(_made(backend, spec, begun_from))
        live.making.add_done_callback(partial(self._making_ended, live))
        return record

    def _new_id(self, request: CreateModelRequest) -> str:
        session_id = request.session_id
        if request.HasField("model_seq_id"):
            new_id = model_id(session_id, request.model_seq_id)
            if new_id in self._book:
                raise conflict(f"model_seq_id {request.model_seq_id} of session {session_id!r}")
            return new_id
        return self._book.free_id(session_id)

    def _making_ended(self, live: LiveModel, making: asyncio.Task[ModelFacts]) -> None:
        error: GatewayError | None = None
        if making.cancelled():
            error = live.making_error or cancelled()
        elif (fault := making.exception()) is not None:
            error = as_gateway_error(fault, "making a model")
        if error is not None:
            self._book.leave(live, ModelState.MODEL_STATE_FAILED)
            self._table.fail(live.create_record, error)
            live.sequencer.abandon(live.entry.not_ready())
            return
        facts = making.result()
        message = live.entry.message
        message.lora_config.CopyFrom(facts.lora_config)
        message.tokenizer_id = live.route.model.tokenizer_id or facts.tokenizer_id
        message.arch = facts.arch
        message.vocab_size = facts.vocab_size
        message.max_context_length = facts.max_context_length
        message.optimizer_steps = facts.optimizer_steps
        message.notes.extend(facts.notes)
        live.facts = Facts(live.facts.abilities, facts.vocab_size, facts.max_context_length)
        self._book.note(live.entry, ModelState.MODEL_STATE_READY)
        self._table.succeed(live.create_record, CreateModelResult(model_id=live.entry.model_id))
        live.sequencer.open()
        if live.closing and live.making_error is not None:
            # The session ended meanwhile, but the model was made all the same.
            self._close(live, live.making_error)

    async def get(self, request: GetModelRequest) -> GetModelResponse:
        """Answer GetModel. Raises NOT_FOUND."""
        entry = self._book.require(request.model_id)
        self._sessions.heard(entry.message.session_id)
        return GetModelResponse(model=self._book.render(entry))

    async def list(self, request: ListModelsRequest) -> ListModelsResponse:
        """Answer ListModels."""
        chosen, token = page(
            (
                entry
                for entry in self._book.newest_first()
                if request.session_id in ("", entry.message.session_id)
                and request.state in (ModelState.MODEL_STATE_UNSPECIFIED, entry.state)
            ),
            request.page_size,
            request.page_token,
        )
        return ListModelsResponse(
            models=[self._book.render(entry) for entry in chosen], next_page_token=token
        )

    async def unload(self, request: UnloadModelRequest) -> Operation:
        """Answer UnloadModel. A repeat answers the same operation. Raises NOT_FOUND."""
        entry = self._book.require(request.model_id)
        self._sessions.heard(entry.message.session_id)
        name = operation_name(entry.model_id, "unload")
        record = self._table.find(name)
        if record is None:
            record = self._table.add(
                name=name,
                kind=OperationKind.OPERATION_KIND_UNLOAD_MODEL,
                model_id=entry.model_id,
            )
            live = self._book.find_live(entry.model_id)
            if live is None:
                # There is nothing left to free.
                self._table.succeed(record, UnloadModelResult(model_id=entry.model_id))
            elif live.closing:
                live.unload_record = record
            else:
                live.closing = True
                live.unload_record = record
                live.sequencer.place_last(UnloadTurn(live, record, self._table, self.unloaded))
        return record.fill(Operation())

    def _session_ended(self, session_id: str) -> None:
        """The session's models are unloaded, behind the caller's back."""
        error = GatewayError(
            Kind.PRECONDITION,
            ErrorReason.ERROR_REASON_SESSION_ENDED,
            f"session {session_id!r} ended before the operation ran",
        )
        for live in self._book.live:
            if live.entry.message.session_id == session_id:
                if live.entry.state == ModelState.MODEL_STATE_CREATING:
                    live.closing = True
                    _cancel_making(live, error)
                else:
                    self._close(live, error)

    def _close(self, live: LiveModel, error: GatewayError) -> None:
        """Unload a model now, failing what waits with `error`."""
        live.closing = True
        live.sequencer.abandon(error)
        self._background.run(self._unload_when_idle(live), f"unloading {live.entry.model_id}")

    async def _unload_when_idle(self, live: LiveModel) -> None:
        await live.sequencer.idle()
        if self._book.find_live(live.entry.model_id) is not live:
            return
        try:
            await live.route.backend.unload_model(live.entry.model_id)
        except GatewayError as error:
            if live.unload_record is not None:
                self._table.fail(live.unload_record, error)
            raise
        self.unloaded(live)

    def unloaded(self, live: LiveModel) -> None:
        """The backend has let go of the model."""
        self._book.leave(live, ModelState.MODEL_STATE_UNLOADED)
        if live.unload_record is not None:
            result = UnloadModelResult(model_id=live.entry.model_id)
            self._table.succeed(live.unload_record, result)

    def fail_parked(self, error: GatewayError) -> None:
        """The gateway takes no more operations: fail those that wait for one."""
        for live in self._book.live:
            live.sequencer.fail_parked(error)

    def abandon_all(self, error: GatewayError) -> None:
        """The gateway stops: fail whatever waits."""
        for live in self._book.live:
            live.closing = True
            if live.entry.state == ModelState.MODEL_STATE_CREATING:
                _cancel_making(live, error)
            live.sequencer.abandon(error, stop_running=True)

    async def idle(self) -> None:
        """Wait until no model is being made and no operation runs or waits."""
        for live in self._book.live:
            if live.making is not None:
                await asyncio.wait([live.making])
            await live.sequencer.idle()

    def _session_forgotten(self, session_id: str) -> None:
        gone = self._book.of_session(session_id)
        self._table.forget_models(entry.model_id for entry in gone)
        for entry in gone:
            self._book.forget(entry)


def _create_identity(request: CreateModelRequest) -> str:
    """What makes a repeat the same operation; empty if nothing does."""
    if request.HasField("model_seq_id"):
        return f"model_seq_id {request.model_seq_id} of session {request.session_id!r}"
    if request.request_id:
        return f"request_id {request.request_id!r} of session {request.session_id!r}"
    return ""


async def _made(
    backend: Backend, spec: ModelSpec, begun_from: CheckpointEntry | None
) -> ModelFacts:
    facts = await backend.create_model(spec)
    if begun_from is None or spec.checkpoint is None:
        return facts
    steps = begun_from.steps_loaded(
        facts.optimizer_steps, with_optimizer=spec.checkpoint.with_optimizer
    )
    return replace(facts, optimizer_steps=steps)


def _cancel_making(live: LiveModel, error: GatewayError) -> bool:
    """Stop the making of a model, to fail with `error`."""
    if live.making is None or live.making.done():
        return False
    live.making_error = live.making_error or error
    live.making.cancel()
    return True
