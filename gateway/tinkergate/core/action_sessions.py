"""Action sessions: vision-language-action models that act, on the backends that have them."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from tinkergate.backends.base import ActionBackend
from tinkergate.core.admission import Admission
from tinkergate.core.background import Background
from tinkergate.core.checkpoint_registry import CheckpointRegistry
from tinkergate.core.ids import action_session_id
from tinkergate.core.router import Route, Router
from tinkergate.core.sessions import Sessions
from tinkergate.core.validation.mint import check_observation
from tinkergate.core.validation.names import parse_checkpoint_path
from tinkergate.core.validation.report import Report
from tinkergate.errors import GatewayError, Kind, unsupported
from tinkergate.v1 import (
    ActBatchRequest,
    ActBatchResponse,
    ActRequest,
    ActResponse,
    CloseActionSessionRequest,
    CloseActionSessionResponse,
    CreateActionSessionRequest,
    CreateActionSessionResponse,
    ErrorReason,
)

Request = TypeVar("Request", bound=Message)


@dataclass(frozen=True)
class _ActionSession:
    session_id: str
    backend: ActionBackend
    upstream_id: str


class ActionSessions:
    """The action sessions that are open. Each is owned by a session and closed with it."""

    def __init__(
        self,
        admission: Admission,
        router: Router,
        sessions: Sessions,
        registry: CheckpointRegistry,
        background: Background,
    ) -> None:
        self._admission = admission
        self._router = router
        self._sessions = sessions
        self._registry = registry
        self._background = background
        self._numbers = itertools.count()
        self._open: dict[str, _ActionSession] = {}
        sessions.on_end.append(self._session_ended)

    async def create(self, request: CreateActionSessionRequest) -> CreateActionSessionResponse:
        """Answer CreateActionSession. Raises INVALID, NOT_FOUND, PRECONDITION or UNSUPPORTED."""
        _check_create(request)
        self._sessions.require_active(request.session_id)
        self._admission.check()
        route = await self._route(request)
        backend = route.backend
        if not route.facts.abilities.capabilities.vla or not isinstance(backend, ActionBackend):
            raise unsupported("action sessions", backend.name)
        request.base_model = route.upstream_name
        # Opened whatever becomes of the caller, so that it is known and closed with the session.
        opening = asyncio.ensure_future(self._opened(request, backend))
        with self._sessions.calling(request.session_id):
            new_id = await asyncio.shield(opening)
        return CreateActionSessionResponse(action_session_id=new_id)

    async def _route(self, request: CreateActionSessionRequest) -> Route:
        if not request.model_path:
            return await self._router.route_to_sample(request.base_model, request.backend)
        checkpoint = self._registry.require(request.model_path).message
        return await self._router.route_to_sample(checkpoint.base_model, checkpoint.backend)

    async def _opened(self, request: CreateActionSessionRequest, backend: ActionBackend) -> str:
        upstream_id = await backend.create_action_session(request)
        session_id = request.session_id
        new_id = action_session_id(session_id, next(self._numbers))
        entry = _ActionSession(session_id, backend, upstream_id)
        self._open[new_id] = entry
        if not self._sessions.is_active(session_id):
            # The session ended meanwhile.
            self._close_behind(new_id)
        return new_id

    async def act(self, request: ActRequest) -> ActResponse:
        """Answer Act. Raises INVALID or NOT_FOUND."""
        report = Report()
        check_observation(report, "observation", request.observation)
        report.raise_if_any()
        entry = self._require(request.action_session_id)
        request.action_session_id = entry.upstream_id
        with self._sessions.calling(entry.session_id):
            return await entry.backend.act(request)

    async def act_batch(self, request: ActBatchRequest) -> ActBatchResponse:
        """Answer ActBatch. Raises INVALID or NOT_FOUND."""
        report = Report()
        if not request.observations:
            report.add("observations", "is empty; needs at least one")
        for index, observation in enumerate(request.observations):
            check_observation(report, f"observations[{index}]", observation)
        report.raise_if_any()
        entry = self._require(request.action_session_id)
        request.action_session_id = entry.upstream_id
        with self._sessions.calling(entry.session_id):
            return await entry.backend.act_batch(request)

    async def close(self, request: CloseActionSessionRequest) -> CloseActionSessionResponse:
        """Answer CloseActionSession. Raises NOT_FOUND."""
        entry = self._require(request.action_session_id)
        await entry.backend.close_action_session(entry.upstream_id)
        self._open.pop(request.action_session_id, None)
        self._sessions.heard(entry.session_id)
        return CloseActionSessionResponse()

    def _require(self, wanted: str) -> _ActionSession:
        entry = self._open.get(wanted)
        if entry is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_SESSION_NOT_FOUND,
                f"there is no action session {wanted!r}; they live as long as their session",
            )
        return entry

    def _session_ended(self, session_id: str) -> None:
        for open_id, entry in list(self._open.items()):
            if entry.session_id == session_id:
                self._close_behind(open_id)

    def _close_behind(self, open_id: str) -> None:
        """End one upstream, behind the caller's back."""
        entry = self._open.pop(open_id)

        async def close() -> None:
            await entry.backend.close_action_session(entry.upstream_id)

        self._background.run(close(), f"closing action session {open_id}")


def _check_create(request: CreateActionSessionRequest) -> None:
    report = Report()
    if not request.session_id:
        report.add("session_id", "is empty; must name the session that is to own it")
    if not (request.base_model or request.model_path):
        report.add("base_model", "is empty, and so is model_path; one must be given")
    if request.model_path and request.backend:
        report.add("backend", "is given with model_path, which has a backend already")
    report.raise_if_any()
    if request.model_path:
        parse_checkpoint_path("model_path", request.model_path)
