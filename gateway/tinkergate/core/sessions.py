"""SessionService: who owns models and samplers, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final

from tinkergate.core.admission import Admission
from tinkergate.core.clock import Clock, nanoseconds, set_time
from tinkergate.core.identity import conflict, request_hash
from tinkergate.core.ids import new_session_id
from tinkergate.core.paging import Window, page, window
from tinkergate.core.settings import CoreSettings
from tinkergate.core.validation.notes import check_finish, check_project, check_session
from tinkergate.errors import GatewayError, Kind
from tinkergate.store import SessionRow, Store
from tinkergate.v1 import (
    CreateSessionRequest,
    CreateSessionResponse,
    ErrorReason,
    FinishSessionRequest,
    FinishSessionResponse,
    GetSessionRequest,
    GetSessionResponse,
    HeartbeatSessionRequest,
    HeartbeatSessionResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    Session,
    SessionState,
    SetSessionProjectRequest,
    SetSessionProjectResponse,
)

_ACTIVE: Final = SessionState.SESSION_STATE_ACTIVE


class SessionEntry:
    """One session."""

    __slots__ = (
        "active",
        "calls",
        "end_time",
        "heard_at",
        "message",
        "number",
        "request_hash",
        "request_id",
    )

    def __init__(
        self, number: int, message: Session, request_id: str, request_hash: bytes, heard_at: float
    ) -> None:
        self.number = number
        self.message = message
        self.request_id = request_id
        self.request_hash = request_hash
        self.heard_at = heard_at
        self.calls = 0
        """Calls that are being held; a session with one is not silent."""
        self.end_time: int | None = None
        self.active = message.state == _ACTIVE

    @property
    def session_id(self) -> str:
        """The id."""
        return self.message.session_id


def place_of(session: Session) -> tuple[int, str]:
    """Where a session is in the order of creation: its time in microseconds since 1970, which is
    what callers can tell it by, and its id."""
    return nanoseconds(session.create_time) // 1000, session.session_id


OnEnd = Callable[[str], None]


class Sessions:
    """The sessions. Other parts say who must be told when one ends (`on_end`, with its id) and
    when an old one is forgotten (`on_forget`)."""

    def __init__(
        self, settings: CoreSettings, store: Store, clock: Clock, admission: Admission
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._admission = admission
        self._entries: dict[str, SessionEntry] = {}
        self._by_request: dict[str, SessionEntry] = {}
        self._next_number = 1
        self.on_end: list[OnEnd] = []
        self.on_forget: list[OnEnd] = []

    async def create(self, request: CreateSessionRequest) -> CreateSessionResponse:
        """Answer CreateSession."""
        hashed = request_hash(request) if request.request_id else b""
        entry = self._by_request.get(request.request_id) if request.request_id else None
        if entry is None:
            self._admission.check()
            check_session(request)
            entry = self._add(request, hashed)
        elif entry.request_hash != hashed:
            raise conflict(f"request_id {request.request_id!r}")
        self.heard(entry.session_id)
        response = CreateSessionResponse(session=self._render(entry))
        response.heartbeat_interval.FromNanoseconds(round(self._settings.heartbeat_interval * 1e9))
        response.expires_after.FromNanoseconds(round(self._settings.session_expires_after * 1e9))
        return response

    def _add(self, request: CreateSessionRequest, hashed: bytes) -> SessionEntry:
        message = Session(
            session_id=new_session_id(),
            state=_ACTIVE,
            tags=request.tags,
            user_metadata=request.user_metadata,
            display_name=request.display_name,
            project_id=request.project_id,
        )
        set_time(message.create_time, self._clock.now())
        set_time(message.last_heartbeat_time, self._clock.now())
        entry = SessionEntry(
            self._next_number, message, request.request_id, hashed, self._clock.elapsed()
        )
        self._next_number += 1
        self._entries[message.session_id] = entry
        if request.request_id:
            self._by_request[request.request_id] = entry
        self._store.insert(
            SessionRow,
            session_id=entry.session_id,
            number=entry.number,
            state=message.state,
            request_id=entry.request_id,
            request_hash=entry.request_hash,
            message=message.SerializeToString(),
        )
        return entry

    async def get(self, request: GetSessionRequest) -> GetSessionResponse:
        """Answer GetSession. Raises NOT_FOUND."""
        return GetSessionResponse(session=self._render(self._require(request.session_id)))

    async def list(self, request: ListSessionsRequest) -> ListSessionsResponse:
        """Answer ListSessions."""
        chosen, token = page(
            (
                entry
                for entry in reversed(self._entries.values())
                if request.state in (SessionState.SESSION_STATE_UNSPECIFIED, entry.message.state)
            ),
            request.page_size,
            request.page_token,
        )
        return ListSessionsResponse(
            sessions=[self._render(entry) for entry in chosen], next_page_token=token
        )

    async def heartbeat(self, request: HeartbeatSessionRequest) -> HeartbeatSessionResponse:
        """Answer HeartbeatSession. Raises NOT_FOUND, or PRECONDITION once the session ended."""
        self.require_active(request.session_id)
        return HeartbeatSessionResponse()

    async def finish(self, request: FinishSessionRequest) -> FinishSessionResponse:
        """Answer FinishSession. Models are unloaded behind the answer. Raises NOT_FOUND."""
        entry = self._require(request.session_id)
        check_finish(request)
        if entry.active:
            entry.message.finish_reason = request.reason
            entry.message.finish_detail = request.detail
            self._end(entry, SessionState.SESSION_STATE_FINISHED)
        return FinishSessionResponse(session=self._render(entry))

    async def set_project(self, request: SetSessionProjectRequest) -> SetSessionProjectResponse:
        """Answer SetSessionProject, for sessions that have ended too. Raises INVALID or
        NOT_FOUND."""
        entry = self._require(request.session_id)
        check_project(request.project_id)
        self.heard(request.session_id)
        entry.message.project_id = request.project_id
        self._store.update(SessionRow, entry.session_id, message=entry.message.SerializeToString())
        return SetSessionProjectResponse(session=self._render(entry))

    def window(self, offset: int, limit: int) -> Window[Session]:
        """The sessions from place `offset` on, newest first. Raises INVALID."""
        found = window(reversed(self._entries.values()), offset, limit)
        return found.map(self._render)

    def search(
        self, wanted: Callable[[Session], bool], after: tuple[int, str] | None, limit: int
    ) -> tuple[Sequence[Session], bool]:
        """The newest `limit` sessions that are `wanted`, newest first, and whether there are more.
        With `after` only those before that place; see `place_of`."""
        entries = sorted(self._entries.values(), key=lambda e: place_of(e.message), reverse=True)
        older = (e for e in entries if after is None or place_of(e.message) < after)
        found = list(islice((entry for entry in older if wanted(entry.message)), limit + 1))
        return [self._render(entry) for entry in found[:limit]], len(found) > limit

    def project_of(self, session_id: str) -> str:
        """The project of a session; empty for none, and for a session that is not known."""
        entry = self._entries.get(session_id)
        return entry.message.project_id if entry is not None else ""

    def _render(self, entry: SessionEntry) -> Session:
        """The session as an answer. `entry.message` itself goes on changing."""
        self._note_heard(entry)
        message = Session()
        message.CopyFrom(entry.message)
        return message

    def _note_heard(self, entry: SessionEntry) -> None:
        """Write down when the session was last heard of. Not done at each call, because calls are
        many and those who ask are few."""
        if entry.active:
            silence = round((self._clock.elapsed() - entry.heard_at) * 1e9)
            set_time(entry.message.last_heartbeat_time, self._clock.now() - silence)

    def _require(self, session_id: str) -> SessionEntry:
        entry = self._entries.get(session_id)
        if entry is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_SESSION_NOT_FOUND,
                f"there is no session {session_id!r}",
            )
        return entry

    def require_active(self, session_id: str) -> SessionEntry:
        """The session, which has now been heard of. Raises NOT_FOUND or PRECONDITION."""
        entry = self._require(session_id)
        if not entry.active:
            state = SessionState.Name(entry.message.state).rpartition("_")[2].lower()
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_SESSION_ENDED,
                f"session {session_id!r} is {state}; create a new one",
                metadata={"state": state},
            )
        self.heard(session_id)
        return entry

    def is_active(self, session_id: str) -> bool:
        """Whether there is such a session and it is in use."""
        entry = self._entries.get(session_id)
        return entry is not None and entry.active

    def heard(self, session_id: str) -> None:
        """A call of the session has come in. Unknown and ended sessions are no error."""
        entry = self._entries.get(session_id)
        if entry is not None and entry.active:
            entry.heard_at = self._clock.elapsed()

    @contextmanager
    def calling(self, session_id: str) -> Iterator[None]:
        """While a call of the session is held, the session does not expire."""
        self.heard(session_id)
        entry = self._entries.get(session_id)
        if entry is None:
            yield
            return
        entry.calls += 1
        try:
            yield
        finally:
            entry.calls -= 1
            self.heard(session_id)

    def note_model(self, session_id: str, model_id: str) -> None:
        """The session has this model; noting it twice is no error."""
        model_ids = self._entries[session_id].message.model_ids
        if model_id not in model_ids:
            model_ids.append(model_id)

    def note_sampler(self, session_id: str, sampler_id: str) -> None:
        """The session has a new sampler."""
        self._entries[session_id].message.sampler_ids.append(sampler_id)

    def reap(self) -> None:
        """End the sessions that have been silent for too long, and forget old ones."""
        silent_since = self._clock.elapsed() - self._settings.session_expires_after
        old = self._clock.now() - round(self._settings.history_retention * 1e9)
        for entry in list(self._entries.values()):
            if entry.active:
                if not entry.calls and entry.heard_at <= silent_since:
                    self._end(entry, SessionState.SESSION_STATE_EXPIRED)
            elif entry.end_time is not None and entry.end_time <= old:
                self._forget(entry)

    def _end(self, entry: SessionEntry, state: SessionState.ValueType) -> None:
        self._note_heard(entry)
        entry.message.state = state
        entry.active = False
        entry.end_time = self._clock.now()
        self._store.update(
            SessionRow,
            entry.session_id,
            state=state,
            end_time=entry.end_time,
            message=entry.message.SerializeToString(),
        )
        for tell in self.on_end:
            tell(entry.session_id)

    def _forget(self, entry: SessionEntry) -> None:
        for tell in self.on_forget:
            tell(entry.session_id)
        del self._entries[entry.session_id]
        self._by_request.pop(entry.request_id, None)
        self._store.delete(SessionRow, entry.session_id)

    def restore(self, rows: Sequence[SessionRow]) -> None:
        """Take up what an earlier run of the gateway left. What was active then has expired."""
        for row in rows:
            entry = SessionEntry(
                row.number,
                Session.FromString(row.message),
                row.request_id,
                row.request_hash,
                self._clock.elapsed(),
            )
            entry.end_time = row.end_time
            self._entries[row.session_id] = entry
            if row.request_id:
                self._by_request[row.request_id] = entry
            self._next_number = row.number + 1
            if entry.active:
                entry.active = False
                self._end(entry, SessionState.SESSION_STATE_EXPIRED)
