"""CopyCheckpoint: the same weights under a training run of their own."""

from __future__ import annotations

import asyncio

from tinkergate.backends.base import Backend
from tinkergate.core.admission import Admission
from tinkergate.core.checkpoint_registry import CheckpointEntry, CheckpointRegistry, set_times
from tinkergate.core.clock import Clock
from tinkergate.core.identity import conflict
from tinkergate.core.ids import CheckpointPath, model_id, new_copy_id
from tinkergate.core.model_book import ModelBook
from tinkergate.core.model_entry import ModelEntry
from tinkergate.core.router import Router
from tinkergate.core.sessions import Sessions
from tinkergate.core.validation.models import check_number
from tinkergate.core.validation.names import check_ttl, parse_checkpoint_path
from tinkergate.core.validation.report import Report
from tinkergate.v1 import (
    Checkpoint,
    CopyCheckpointRequest,
    CopyCheckpointResponse,
    Model,
    ModelState,
)


class CheckpointCopies:
    """Makes copies. The training run of a copy in a session is there as a model that is unloaded:
    it takes up its number and is listed, and no operation is taken for it."""

    def __init__(
        self,
        clock: Clock,
        admission: Admission,
        router: Router,
        sessions: Sessions,
        book: ModelBook,
        registry: CheckpointRegistry,
    ) -> None:
        self._clock = clock
        self._admission = admission
        self._router = router
        self._sessions = sessions
        self._book = book
        self._registry = registry
        self._running: dict[str, tuple[str, asyncio.Task[Checkpoint]]] = {}
        """The source and the work, by the model id of the copy."""

    async def copy(self, request: CopyCheckpointRequest) -> CopyCheckpointResponse:
        """Answer CopyCheckpoint. (session_id, model_seq_id) with the same path answers the same
        copy, also when the original is gone. Raises INVALID, NOT_FOUND, CONFLICT, PRECONDITION or
        UNSUPPORTED."""
        path = _check(request)
        self._sessions.heard(request.session_id)
        if request.HasField("model_seq_id"):
            known = model_id(request.session_id, request.model_seq_id)
            if known in self._book:
                return CopyCheckpointResponse(checkpoint=await self._repeated(known, path, request))
        if request.session_id:
            self._sessions.require_active(request.session_id)
        self._admission.check()
        source = self._registry.require(request.path)
        backend = self._router.backend(source.message.backend)
        copy = self._described(source.message, self._new_id(request), request)
        # Entered before anything is awaited: the id is taken from now on.
        run = self._enter(copy, request.session_id) if request.session_id else None
        making = asyncio.create_task(self._make(copy, run, source, backend))
        self._running[copy.model_id] = (request.path, making)
        making.add_done_callback(lambda _: self._running.pop(copy.model_id))
        try:
            made = await asyncio.shield(making)
        except asyncio.CancelledError:
            # Once the backend has begun, a caller who goes away no longer stops it: the registry
            # must learn how it ended.
            await asyncio.wait([making])
            raise
        return CopyCheckpointResponse(checkpoint=made)

    async def _repeated(
        self, known: str, path: CheckpointPath, request: CopyCheckpointRequest
    ) -> Checkpoint:
        if known in self._running:
            source, making = self._running[known]
            if source == request.path:
                return await asyncio.shield(making)
        entry = self._registry.find(str(path._replace(model_id=known)))
        if entry is None or entry.message.copied_from != request.path:
            raise conflict(f"model_seq_id {request.model_seq_id} of session {request.session_id!r}")
        return entry.message

    def _new_id(self, request: CopyCheckpointRequest) -> str:
        if not request.session_id:
            return new_copy_id()
        if request.HasField("model_seq_id"):
            return model_id(request.session_id, request.model_seq_id)
        return self._book.free_id(request.session_id)

    def _described(
        self, source: Checkpoint, new_id: str, request: CopyCheckpointRequest
    ) -> Checkpoint:
        path = parse_checkpoint_path("path", source.path)._replace(model_id=new_id)
        copy = Checkpoint()
        copy.CopyFrom(source)
        copy.upstream_path, copy.public = "", False
        copy.path, copy.model_id, copy.copied_from = str(path), new_id, source.path
        set_times(copy, self._clock.now(), request.ttl if request.HasField("ttl") else None)
        return copy

    async def _make(
        self, copy: Checkpoint, run: ModelEntry | None, source: CheckpointEntry, backend: Backend
    ) -> Checkpoint:
        try:
            saved = await backend.copy_checkpoint(copy.copied_from, copy)
        except BaseException:
            if run is not None:
                self._book.forget(run)
            raise
        copy.size_bytes = saved.size_bytes or copy.size_bytes
        copy.upstream_path = saved.upstream_path
        self._registry.add(copy, source.has_optimizer, source.optimizer_steps)
        if run is not None:
            self._sessions.note_model(run.message.session_id, run.model_id)
        return copy

    def _enter(self, copy: Checkpoint, session_id: str) -> ModelEntry:
        """The training run of the copy."""
        run = Model(
            model_id=copy.model_id,
            session_id=session_id,
            base_model=copy.base_model,
            backend=copy.backend,
            state=ModelState.MODEL_STATE_UNLOADED,
            lora_config=copy.lora_config,
            optimizer_config=copy.optimizer_config,
            notes=[f"holds a copy of {copy.copied_from} and cannot be trained on"],
        )
        run.create_time.CopyFrom(copy.create_time)
        run.last_request_time.CopyFrom(copy.create_time)
        return self._book.add(run)


def _check(request: CopyCheckpointRequest) -> CheckpointPath:
    report = Report()
    check_number(report, "model_seq_id", request)
    if request.HasField("model_seq_id") and not request.session_id:
        report.add("model_seq_id", "is given without a session_id, whose count it is")
    if request.HasField("ttl"):
        check_ttl(report, request.ttl)
    report.raise_if_any()
    return parse_checkpoint_path("path", request.path)
