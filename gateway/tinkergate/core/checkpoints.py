"""CheckpointService: looking at what was saved, removing it, taking in what others saved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import NamedTuple

from tinkergate.backends.base import SavedCheckpoint
from tinkergate.core.admission import Admission
from tinkergate.core.checkpoint_registry import (
    CheckpointEntry,
    CheckpointRegistry,
    set_expiry,
    set_times,
)
from tinkergate.core.clock import Clock
from tinkergate.core.ids import WEIGHTS, CheckpointPath, new_import_id, session_of
from tinkergate.core.importing import receive
from tinkergate.core.paging import Window, page, window
from tinkergate.core.router import Router
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.core.validation.models import ADAMW
from tinkergate.core.validation.names import check_name, check_ttl, parse_checkpoint_path
from tinkergate.core.validation.notes import check_metadata
from tinkergate.core.validation.report import Report
from tinkergate.errors import GatewayError, Kind, invalid_field
from tinkergate.v1 import (
    Checkpoint,
    CheckpointType,
    DeleteCheckpointRequest,
    DeleteCheckpointResponse,
    ErrorReason,
    FilePiece,
    GetCheckpointRequest,
    GetCheckpointResponse,
    ImportCheckpointResponse,
    ImportHeader,
    ListCheckpointsRequest,
    ListCheckpointsResponse,
    LoraConfig,
    OptimizerConfig,
    PublishCheckpointRequest,
    PublishCheckpointResponse,
    SetCheckpointTtlRequest,
    SetCheckpointTtlResponse,
    UnpublishCheckpointRequest,
    UnpublishCheckpointResponse,
)

_log = logging.getLogger(__name__)


class CheckpointUse(NamedTuple):
    """What the checkpoints of a session come to."""

    checkpoints: int
    size_bytes: int


class Checkpoints:
    """The RPCs of CheckpointService, but for those of copies and files."""

    def __init__(
        self,
        settings: CoreSettings,
        clock: Clock,
        admission: Admission,
        router: Router,
        sessions: Sessions,
        registry: CheckpointRegistry,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._admission = admission
        self._router = router
        self._sessions = sessions
        self._registry = registry

    async def list(self, request: ListCheckpointsRequest) -> ListCheckpointsResponse:
        """Answer ListCheckpoints."""
        if request.model_id:
            self._sessions.heard(session_of(request.model_id))
        chosen, token = page(
            (
                entry
                for entry in self._registry.newest_first()
                if request.model_id in ("", entry.message.model_id)
            ),
            request.page_size,
            request.page_token,
        )
        return ListCheckpointsResponse(
            checkpoints=[entry.message for entry in chosen], next_page_token=token
        )

    def window(
        self, offset: int, limit: int, model_id: str = "", without: Collection[int] = ()
    ) -> Window[Checkpoint]:
        """The checkpoints from place `offset` on, newest first; of one model if it is given, and
        without those of the types in `without`. Raises INVALID."""
        chosen = self._registry.of_model(model_id) if model_id else self._registry.newest_first()
        messages = (entry.message for entry in chosen)
        return window((held for held in messages if held.type not in without), offset, limit)

    def use_by_session(self) -> Mapping[str, CheckpointUse]:
        """What the checkpoints of each session come to; sessions without any are left out."""
        uses: dict[str, CheckpointUse] = {}
        for entry in self._registry.newest_first():
            session_id, size = session_of(entry.message.model_id), entry.message.size_bytes
            count, sum_ = uses.get(session_id, CheckpointUse(0, 0))
            uses[session_id] = CheckpointUse(count + 1, sum_ + size)
        return uses

    async def get(self, request: GetCheckpointRequest) -> GetCheckpointResponse:
        """Answer GetCheckpoint. Raises INVALID or NOT_FOUND."""
        return GetCheckpointResponse(checkpoint=self._require(request.path).message)

    async def delete(self, request: DeleteCheckpointRequest) -> DeleteCheckpointResponse:
        """Answer DeleteCheckpoint. Raises INVALID or NOT_FOUND."""
        await self._delete(self._require(request.path))
        return DeleteCheckpointResponse()

    async def publish(self, request: PublishCheckpointRequest) -> PublishCheckpointResponse:
        """Answer PublishCheckpoint. Raises INVALID, NOT_FOUND, or CONFLICT if it is."""
        return PublishCheckpointResponse(checkpoint=self._mark(request.path, public=True))

    async def unpublish(self, request: UnpublishCheckpointRequest) -> UnpublishCheckpointResponse:
        """Answer UnpublishCheckpoint. Raises INVALID, NOT_FOUND, or CONFLICT if it is not."""
        return UnpublishCheckpointResponse(checkpoint=self._mark(request.path, public=False))

    def _mark(self, path: str, *, public: bool) -> Checkpoint:
        entry = self._require(path)
        if entry.message.public == public:
            raise GatewayError(
                Kind.CONFLICT,
                ErrorReason.ERROR_REASON_NO_CHANGE,
                f"checkpoint {path!r} is {'public already' if public else 'not public'}",
            )
        return self._change(entry, lambda message: setattr(message, "public", public))

    async def set_ttl(self, request: SetCheckpointTtlRequest) -> SetCheckpointTtlResponse:
        """Answer SetCheckpointTtl. Raises INVALID or NOT_FOUND."""
        report = Report()
        if request.HasField("ttl"):
            check_ttl(report, request.ttl)
        report.raise_if_any()
        entry = self._require(request.path)
        ttl = request.ttl if request.HasField("ttl") else None
        now = self._clock.now()
        changed = self._change(entry, lambda message: set_expiry(message, now, ttl))
        return SetCheckpointTtlResponse(checkpoint=changed)

    def _change(self, entry: CheckpointEntry, change: Callable[[Checkpoint], None]) -> Checkpoint:
        message = Checkpoint()
        message.CopyFrom(entry.message)
        change(message)
        self._registry.change(entry, message)
        return message

    def _require(self, path: str) -> CheckpointEntry:
        """The checkpoint of that path, whose session has now been heard of."""
        parsed = parse_checkpoint_path("path", path)
        self._sessions.heard(session_of(parsed.model_id))
        return self._registry.require(path)

    async def _delete(self, entry: CheckpointEntry) -> None:
        path = entry.message.path
        await self._router.backend(entry.message.backend).delete_checkpoint(path)
        if self._registry.find(path) is entry:
            self._registry.remove(path)

    async def reap(self) -> None:
        """Remove the checkpoints whose time is over. One that cannot be removed now is tried again
        the next time."""
        for entry in self._registry.expired():
            try:
                await self._delete(entry)
            except GatewayError:
                _log.warning("could not remove %s", entry.message.path, exc_info=True)

    async def import_(
        self, header: ImportHeader, pieces: AsyncIterator[FilePiece]
    ) -> ImportCheckpointResponse:
        """Answer ImportCheckpoint. Nothing is left behind unless all goes well."""
        self._admission.check()
        report = Report()
        check_name(report, "header.name", header.name)
        check_metadata(report, header.user_metadata)
        report.raise_if_any()
        if header.backend:
            self._router.backend(header.backend)
        async with receive(pieces, self._settings) as adapter:
            base_model = header.base_model or adapter.base_model
            if not base_model:
                raise invalid_field(
                    "header.base_model",
                    "is empty, and adapter_config.json names no base_model_name_or_path",
                )
            route = await self._router.route_to_train(base_model, header.backend)
            path = CheckpointPath(new_import_id(), WEIGHTS, header.name)
            checkpoint = Checkpoint(
                path=str(path),
                checkpoint_id=path.checkpoint_id,
                type=CheckpointType.CHECKPOINT_TYPE_TRAINING,
                model_id=path.model_id,
                base_model=route.model.name,
                lora_rank=adapter.rank,
                optimizer_config=OptimizerConfig(type=ADAMW),
                user_metadata=header.user_metadata,
                backend=route.backend.name,
            )
            set_times(checkpoint, self._clock.now(), ttl=None)
            to_make = Checkpoint()
            to_make.CopyFrom(checkpoint)
            to_make.base_model = route.upstream_name
            # Once the backend has begun, a caller who goes away no longer stops it: the registry
            # must learn how it ended.
            importing = asyncio.ensure_future(
                self._import(checkpoint, route.backend.import_checkpoint(to_make, adapter.files))
            )
            try:
                return await asyncio.shield(importing)
            except asyncio.CancelledError:
                await asyncio.wait([importing])
                raise

    async def _import(
        self, checkpoint: Checkpoint, importing: Awaitable[SavedCheckpoint]
    ) -> ImportCheckpointResponse:
        saved = await importing
        checkpoint.size_bytes, checkpoint.upstream_path = saved.size_bytes, saved.upstream_path
        checkpoint.lora_config.CopyFrom(saved.lora_config or LoraConfig(rank=checkpoint.lora_rank))
        self._registry.add(checkpoint, has_optimizer=False)
        return ImportCheckpointResponse(checkpoint=checkpoint)
