"""CheckpointService: looking at what was saved, removing it, taking in what others saved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable

from tinkergate.backends.base import SavedCheckpoint
from tinkergate.core.admission import Admission
from tinkergate.core.checkpoint_registry import CheckpointEntry, CheckpointRegistry
from tinkergate.core.clock import Clock, set_time
from tinkergate.core.ids import WEIGHTS, CheckpointPath, new_import_id, session_of
from tinkergate.core.importing import receive
from tinkergate.core.paging import page
from tinkergate.core.router import Router
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.core.validation.names import check_name, parse_checkpoint_path
from tinkergate.core.validation.notes import check_metadata
from tinkergate.core.validation.report import Report
from tinkergate.errors import GatewayError, invalid_field
from tinkergate.v1 import (
    Checkpoint,
    CheckpointType,
    DeleteCheckpointRequest,
    DeleteCheckpointResponse,
    FilePiece,
    GetCheckpointRequest,
    GetCheckpointResponse,
    ImportCheckpointResponse,
    ImportHeader,
    ListCheckpointsRequest,
    ListCheckpointsResponse,
)

_log = logging.getLogger(__name__)


class Checkpoints:
    """The RPCs of CheckpointService."""

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

    async def get(self, request: GetCheckpointRequest) -> GetCheckpointResponse:
        """Answer GetCheckpoint. Raises INVALID or NOT_FOUND."""
        path = parse_checkpoint_path("path", request.path)
        self._sessions.heard(session_of(path.model_id))
        return GetCheckpointResponse(checkpoint=self._registry.require(request.path).message)

    async def delete(self, request: DeleteCheckpointRequest) -> DeleteCheckpointResponse:
        """Answer DeleteCheckpoint. Raises INVALID or NOT_FOUND."""
        path = parse_checkpoint_path("path", request.path)
        self._sessions.heard(session_of(path.model_id))
        await self._delete(self._registry.require(request.path))
        return DeleteCheckpointResponse()

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
                user_metadata=header.user_metadata,
                backend=route.backend.name,
            )
            set_time(checkpoint.create_time, self._clock.now())
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
        self._registry.add(checkpoint, has_optimizer=False)
        return ImportCheckpointResponse(checkpoint=checkpoint)
