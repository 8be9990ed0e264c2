"""Sessions at the service (wire sections 4.2, 4.3 and 4.5).

The models and samplers of one session of the gateway belong to one session of the service, which
is opened for the first of them and finished after the last, and hears that it is in use meanwhile.
What belongs to no session of the gateway shares one.
"""

from __future__ import annotations

import asyncio
import logging

from tinkergate.backends.errands import Errands
from tinkergate.backends.tinker.service import CLIENT_VERSION, Call, Service
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.write_requests import session_json
from tinkergate.errors import GatewayError
from tinkergate.http import AnswerLost, NotSent

_log = logging.getLogger(__name__)

SHARED = ""
"""The key of the session that belongs to no session of the gateway."""

HEARTBEAT_TIMEOUT = 10.0
WARN_AFTER = 120.0
"""After how long without a heartbeat that was heard the log says so, in seconds."""
FINISH_TIMEOUT = 5.0

_GONE = frozenset({404, 410})


class UpstreamSession:
    """One session of the service."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.gone = False
        """Whether the service says that it has ended."""
        self._models = 0
        self._samplers = 0

    def next_model(self) -> int:
        """A `model_seq_id` that was not used yet."""
        self._models += 1
        return self._models - 1

    def next_sampler(self) -> int:
        """A `sampling_session_seq_id` that was not used yet."""
        self._samplers += 1
        return self._samplers - 1


class _Entry:
    """The session of one key, and who uses it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.session: UpstreamSession | None = None
        self.heart: asyncio.Task[None] | None = None


class UpstreamSessions:
    """All sessions that are open at the service."""

    def __init__(self, service: Service, errands: Errands) -> None:
        self._service = service
        self._errands = errands
        self._entries: dict[str, _Entry] = {}

    async def use(self, key: str) -> UpstreamSession:
        """The session of a key (a session of the gateway, or `SHARED`), for one more user, who
        calls `release` at the end; opened if there is none, or if the service has ended it. Raises
        GatewayError, and counts nobody then."""
        entry = self._entries.setdefault(key, _Entry())
        entry.users += 1
        try:
            async with entry.lock:
                if entry.session is None or entry.session.gone:
                    self._stop_heart(entry)
                    entry.session = await self._open()
                    beat = self._beat(entry.session)
                    entry.heart = asyncio.get_running_loop().create_task(beat)
                return entry.session
        except BaseException:
            self.release(key)
            raise

    def release(self, key: str) -> None:
        """One user less. After the last one the session is finished."""
        entry = self._entries[key]
        entry.users -= 1
        if entry.users == 0:
            del self._entries[key]
            self._stop_heart(entry)
            if entry.session is not None and not entry.session.gone:
                self._errands.run(self._finish(entry.session), "finishing a session")

    def close(self) -> None:
        """Finish all sessions."""
        for key, entry in list(self._entries.items()):
            entry.users = 1
            self.release(key)

    async def _open(self) -> UpstreamSession:
        body = session_json(CLIENT_VERSION, self._service.settings.project_id)
        call = Call("create_session", "create_session", body)
        session_id = await self._service.call(
            call, lambda answer: Fields(read_json(answer.body)).text("session_id")
        )
        return UpstreamSession(session_id)

    async def _beat(self, session: UpstreamSession) -> None:
        """Say that the session is in use, until the service says that it is not."""
        loop = asyncio.get_running_loop()
        heard, warned = loop.time(), False
        call = Call(
            "session_heartbeat",
            "session_heartbeat",
            {"session_id": session.session_id, "type": "session_heartbeat"},
            within=HEARTBEAT_TIMEOUT,
        )
        while True:
            await asyncio.sleep(self._service.settings.heartbeat_interval)
            try:
                answer = await self._service.once(call)
            except (NotSent, AnswerLost, GatewayError) as error:
                problem = str(error)
            else:
                if answer.status < 300:
                    heard, warned = loop.time(), False
                    continue
                if answer.status in _GONE:
                    session.gone = True
                    _log.warning(
                        "backend %s: session %s has ended there",
                        self._service.name,
                        session.session_id,
                    )
                    return
                problem = f"answered {answer.status}"
            if not warned and loop.time() - heard > WARN_AFTER:
                warned = True
                _log.warning(
                    "backend %s: no heartbeat of session %s was heard for %g s, and it may end: %s",
                    self._service.name,
                    session.session_id,
                    loop.time() - heard,
                    problem,
                )

    async def _finish(self, session: UpstreamSession) -> None:
        if self._service.settings.dialect == "mint":
            return  # has no such route; the session ends for want of heartbeats
        call = Call(
            "finishing the session",
            f"sessions/{session.session_id}/finish",
            {"reason": {"type": "success"}},
            within=FINISH_TIMEOUT,
        )
        await self._service.quietly(call)

    @staticmethod
    def _stop_heart(entry: _Entry) -> None:
        if entry.heart is not None:
            entry.heart.cancel()
            entry.heart = None
