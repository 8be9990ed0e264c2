"""Samplers: frozen weights, ready to sample."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from tinkergate.backends.base import Backend, SamplerSpec
from tinkergate.core.admission import Admission
from tinkergate.core.background import Background
from tinkergate.core.checkpoint_registry import CheckpointRegistry
from tinkergate.core.identity import conflict, request_hash
from tinkergate.core.ids import sampler_id, session_of
from tinkergate.core.router import Route, Router
from tinkergate.core.sessions import Sessions
from tinkergate.core.validation.models import check_number
from tinkergate.core.validation.names import parse_checkpoint_path
from tinkergate.core.validation.report import Report
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    CreateSamplerRequest,
    CreateSamplerResponse,
    ErrorReason,
    GetSamplerRequest,
    GetSamplerResponse,
    Sampler,
)


class SamplerEntry:
    """One sampler."""

    __slots__ = ("making", "message", "request_hash", "route")

    def __init__(self, message: Sampler, route: Route, request_hash: bytes) -> None:
        self.message = message
        self.route = route
        self.request_hash = request_hash
        """Of the CreateSampler that made it; empty if a model's weights were saved into it."""
        self.making: asyncio.Task[None] | None = None
        """The backend's making of it, while that goes on."""


class Samplers:
    """The samplers of all sessions, each for as long as its session."""

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
        self._entries: dict[str, SamplerEntry] = {}
        self._numbers: defaultdict[str, set[int]] = defaultdict(set)
        """Numbers that are taken, by session."""
        sessions.on_end.append(self._session_ended)

    def reserve(self, session_id: str, asked: int | None) -> int:
        """Take a number of the session: the one that is asked for, else a new one. Raises CONFLICT
        if it is taken."""
        taken = self._numbers[session_id]
        if asked is None:
            number = len(taken)
            while number in taken:
                number += 1
        elif asked in taken:
            raise conflict(f"sampler_seq_id {asked} of session {session_id!r}")
        else:
            number = asked
        taken.add(number)
        return number

    def release(self, session_id: str, number: int) -> None:
        """No sampler was made under the number."""
        if session_id in self._numbers:
            self._numbers[session_id].discard(number)

    def adopt(self, new_id: str, base_model: str, route: Route) -> None:
        """A model's weights were saved into a sampler."""
        message = Sampler(
            sampler_id=new_id,
            session_id=session_of(new_id),
            base_model=base_model,
            backend=route.backend.name,
        )
        if not self._sessions.is_active(message.session_id):
            # The session ended while the weights were being saved.
            self._close_behind(route.backend, new_id)
            return
        self._entries[new_id] = SamplerEntry(message, route, b"")
        self._sessions.note_sampler(message.session_id, new_id)

    async def create(self, request: CreateSamplerRequest) -> CreateSamplerResponse:
        """Answer CreateSampler. A repeat answers the same sampler; a caller who goes away does not
        stop the making of it."""
        _check(request)
        hashed = request_hash(request)
        self._sessions.require_active(request.session_id)
        entry = self._repeated(request, hashed)
        if entry is None:
            self._admission.check()
            path, route = await self._route(request)
            # Others ran while the route was looked up.
            self._sessions.require_active(request.session_id)
            entry = self._repeated(request, hashed)
            if entry is None:
                entry = self._make(request, route, path, hashed)
        if entry.making is not None:
            with self._sessions.calling(request.session_id):
                await asyncio.shield(entry.making)
        return CreateSamplerResponse(sampler=entry.message)

    def _repeated(self, request: CreateSamplerRequest, hashed: bytes) -> SamplerEntry | None:
        if not request.HasField("sampler_seq_id"):
            return None
        entry = self._entries.get(sampler_id(request.session_id, request.sampler_seq_id))
        if entry is not None and entry.request_hash != hashed:
            raise conflict(
                f"sampler_seq_id {request.sampler_seq_id} of session {request.session_id!r}"
            )
        return entry

    async def _route(self, request: CreateSamplerRequest) -> tuple[str, Route]:
        """The path and the backend of what to sample from."""
        if request.WhichOneof("source") == "base_model":
            route = await self._router.route_to_sample(request.base_model, request.backend)
            return "", route
        checkpoint = self._registry.require(request.model_path).message
        route = await self._router.route_to_sample(checkpoint.base_model, checkpoint.backend)
        return checkpoint.path, route

    def _make(
        self, request: CreateSamplerRequest, route: Route, path: str, hashed: bytes
    ) -> SamplerEntry:
        asked = request.sampler_seq_id if request.HasField("sampler_seq_id") else None
        number = self.reserve(request.session_id, asked)
        new_id = sampler_id(request.session_id, number)
        message = Sampler(
            sampler_id=new_id,
            session_id=request.session_id,
            base_model=route.model.name,
            model_path=path,
            backend=route.backend.name,
        )
        entry = self._entries[new_id] = SamplerEntry(message, route, hashed)
        entry.making = asyncio.get_running_loop().create_task(self._made(entry, number))
        return entry

    async def _made(self, entry: SamplerEntry, number: int) -> None:
        message = entry.message
        spec = SamplerSpec(message.sampler_id, entry.route.upstream_name, message.model_path)
        try:
            await entry.route.backend.create_sampler(spec)
        except BaseException:
            self._entries.pop(message.sampler_id, None)
            self.release(message.session_id, number)
            raise
        finally:
            entry.making = None
        if message.sampler_id in self._entries:
            self._sessions.note_sampler(message.session_id, message.sampler_id)
        else:
            # The session ended meanwhile.
            await entry.route.backend.close_sampler(message.sampler_id)

    async def get(self, request: GetSamplerRequest) -> GetSamplerResponse:
        """Answer GetSampler. Raises NOT_FOUND."""
        entry = await self.require(request.sampler_id)
        self._sessions.heard(entry.message.session_id)
        return GetSamplerResponse(sampler=entry.message)

    async def require(self, wanted: str) -> SamplerEntry:
        """The sampler of that id, ready. Raises NOT_FOUND."""
        entry = self._entries.get(wanted)
        if entry is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND,
                f"there is no sampler {wanted!r}; samplers live as long as their session",
            )
        if entry.making is not None:
            await asyncio.shield(entry.making)
        return entry

    def _session_ended(self, session_id: str) -> None:
        self._numbers.pop(session_id, None)
        for entry in list(self._entries.values()):
            if entry.message.session_id == session_id:
                sampler = entry.message.sampler_id
                del self._entries[sampler]
                if entry.making is None:
                    self._close_behind(entry.route.backend, sampler)

    def _close_behind(self, backend: Backend, sampler: str) -> None:
        """Have the backend free a sampler, behind the caller's back."""

        async def close() -> None:
            await backend.close_sampler(sampler)

        self._background.run(close(), f"closing {sampler}")


def _check(request: CreateSamplerRequest) -> None:
    report = Report()
    check_number(report, "sampler_seq_id", request)
    source = request.WhichOneof("source")
    if source is None:
        report.add("source", "is not given; must be base_model or model_path")
    elif source == "base_model" and not request.base_model:
        report.add("base_model", "is empty; must name a base model")
    elif source == "model_path" and request.backend:
        report.add("backend", "is given with model_path, which has a backend already")
    report.raise_if_any()
    if source == "model_path":
        parse_checkpoint_path("model_path", request.model_path)
