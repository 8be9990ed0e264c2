"""Samplers at the service (wire sections 5.6 and 6.1).

A sampler of the gateway stands for one there. What is sampled or scored with directly, a base model
or a checkpoint, gets one on demand, of which a bounded number is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from tinkergate.backends.base import SamplerSpec
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.tinker.models import UpstreamModel, session_key
from tinkergate.backends.tinker.operations import Saved
from tinkergate.backends.tinker.service import Call, Service
from tinkergate.backends.tinker.sessions import SHARED, UpstreamSession, UpstreamSessions
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.v1 import SampleRequest, ScoreRequest

_log = logging.getLogger(__name__)


@dataclass
class UpstreamSampler:
    """A sampler at the service."""

    upstream_id: str
    session: UpstreamSession
    source: dict[str, str] | None
    """What it was made of, as create_sampling_session asks for it; None for weights that were
    never saved."""
    left_behind: str = ""
    """The service's path of a checkpoint that was saved for this sampler alone."""
    _calls: int = 0

    def next_call(self) -> int:
        """A seq_id for a call that was not used yet."""
        self._calls += 1
        return self._calls - 1


class UpstreamSamplers:
    """All samplers that the gateway has at the service."""

    def __init__(
        self, service: Service, sessions: UpstreamSessions, checkpoints: KnownCheckpoints
    ) -> None:
        self._service = service
        self._sessions = sessions
        self._checkpoints = checkpoints
        self._samplers: dict[str, UpstreamSampler] = {}
        self._on_demand: OrderedDict[tuple[str, str], UpstreamSampler] = OrderedDict()
        """By what a request names, the one used least lately first."""
        self._shared: UpstreamSession | None = None
        self._locks: dict[object, asyncio.Lock] = {}

    async def create(self, spec: SamplerSpec) -> None:
        """Make a sampler."""
        key = session_key(spec.sampler_id)
        session = await self._sessions.use(key)
        try:
            source = self._source(spec.base_model, spec.model_path)
            made = await self._made(session, source, spec.sampler_id)
        except BaseException:
            self._sessions.release(key)
            raise
        self._samplers[spec.sampler_id] = made

    def _source(self, base_model: str, model_path: str) -> dict[str, str]:
        if model_path:
            return {"model_path": self._checkpoints.find(model_path).upstream_path}
        return {"base_model": base_model}

    async def _made(
        self, session: UpstreamSession, source: dict[str, str], named: str
    ) -> UpstreamSampler:
        body: dict[str, Any] = {
            "session_id": session.session_id,
            "sampling_session_seq_id": session.next_sampler(),
            **source,
            "type": "create_sampling_session",
        }
        call = Call(f"create_sampling_session of {named}", "create_sampling_session", body)
        upstream_id = await self._service.call(
            call, lambda answer: Fields(read_json(answer.body)).text("sampling_session_id")
        )
        return UpstreamSampler(upstream_id, session, source)

    async def adopt(self, model: UpstreamModel, number: int, saved: Saved) -> None:
        """A model's weights were saved without a name: as a sampler, or, where the service has no
        such thing, as a checkpoint of which a sampler is made now."""
        sampler_id = f"{model.session_key}:sample:{number}"
        session = await self._sessions.use(model.session_key)
        try:
            if saved.sampler_id:
                made = UpstreamSampler(saved.sampler_id, session, None)
            else:
                made = await self._made(session, {"model_path": saved.path}, sampler_id)
                made.left_behind = saved.path
        except BaseException:
            self._sessions.release(model.session_key)
            raise
        self._samplers[sampler_id] = made

    def close_sampler(self, sampler_id: str) -> None:
        """Let go of a sampler; the service does so at the end of the session. Unknown ids are no
        error."""
        sampler = self._samplers.pop(sampler_id, None)
        if sampler is not None:
            if sampler.left_behind:
                _log.info(
                    "backend %s: %s, saved for sampler %s alone, stays there",
                    self._service.name,
                    sampler.left_behind,
                    sampler_id,
                )
            self._sessions.release(session_key(sampler_id))

    def forget(self, model_path: str) -> None:
        """What the path stood for has changed or is gone."""
        key = ("model_path", model_path)
        if (lock := self._locks.get(key)) is not None and not lock.locked():
            del self._locks[key]
        self._on_demand.pop(key, None)

    async def of(self, request: SampleRequest | ScoreRequest) -> UpstreamSampler:
        """The sampler that a request names, or one of the base model or checkpoint that it
        names."""
        which = request.WhichOneof("source")
        if which == "sampler_id":
            sampler = self._samplers.get(request.sampler_id)
            if sampler is None:
                raise GatewayError(
                    Kind.NOT_FOUND,
                    ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND,
                    f"backend {self._service.name!r} has no sampler {request.sampler_id!r}",
                    backend=self._service.name,
                )
            return sampler
        assert which is not None
        key = (which, getattr(request, which))
        async with self._locks.setdefault(key, asyncio.Lock()):
            sampler = self._on_demand.get(key)
            if sampler is None or sampler.session.gone:
                session = await self._shared_session()
                source = self._source(request.base_model, request.model_path)
                sampler = self._on_demand[key] = await self._made(session, source, key[1])
            self._on_demand.move_to_end(key)
        while len(self._on_demand) > self._service.settings.samplers_kept:
            oldest, _ = self._on_demand.popitem(last=False)
            self._locks.pop(oldest, None)
        return sampler

    async def _shared_session(self) -> UpstreamSession:
        async with self._locks.setdefault(SHARED, asyncio.Lock()):
            if self._shared is None or self._shared.gone:
                was_open = self._shared is not None
                self._shared = await self._sessions.use(SHARED)
                if was_open:
                    self._sessions.release(SHARED)
            return self._shared

    async def remake(self, sampler: UpstreamSampler, request: SampleRequest) -> bool:
        """The service does not know a sampler any more: make it again of what it was made of.
        False if that is out of the question."""
        if sampler.source is None:
            return False
        key = session_key(request.sampler_id) if request.sampler_id else SHARED
        session = await self._sessions.use(key)
        try:
            fresh = await self._made(session, sampler.source, sampler.upstream_id)
        finally:
            self._sessions.release(key)
        sampler.upstream_id, sampler.session = fresh.upstream_id, session
        return True
