"""The control plane (wire section 4): routes, teams, sessions, and what it tells of models and
checkpoints."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from tinkergate.backends.loops.service import Call, Effect, Service, body_of
from tinkergate.dialects.loops.read_results import (
    Run,
    StoredCheckpoint,
    checkpoints_from_json,
    models_from_json,
    run_from_json,
)
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.http import Answer
from tinkergate.v1 import SupportedModel

T = TypeVar("T")

OPENING_TIME = 10.0
"""How long the service is tried at the start, in seconds; whoever starts the backend goes on."""
SESSIONS_KEPT = 1024
"""How many sessions are remembered. One that was forgotten and is used again gets another there."""
_GONE = frozenset({"404", "409", "410"})
"""What may be answered to whoever names a session that has ended."""


class Control:
    """The control plane."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loops = f"{service.settings.url}/v1/loops"
        self._created = self._loops
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Find the team, or else see whether the service takes the key. Raises GatewayError."""
        patience = min(self._service.settings.retry_time, OPENING_TIME)
        if not (team := self._service.settings.team):
            await self.models(patience)
            return
        url = f"{self._service.settings.url}/v1/teams"
        call = Call("teams", url, method="GET", patience=patience)
        teams = await self._service.call(call, _read_teams)
        if team not in teams:
            raise GatewayError(
                Kind.UNAVAILABLE,
                ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
                f"backend {self._service.name!r}: team is {team!r}; the account has: "
                + (", ".join(sorted(teams)) or "none"),
                backend=self._service.name,
            )
        base = self._service.settings.url
        self._created = f"{base}/v1/teams/{quote(teams[team], safe='')}/loops"

    def route(self, *parts: str) -> str:
        """The URL of a route."""
        return "/".join((self._loops, *(quote(part, safe="") for part in parts)))

    def create(
        self, what: str, operation: str, body: dict[str, Any] | None, effect: Effect
    ) -> Call:
        """The call that makes a session, trainer or sampler."""
        return Call(
            operation,
            f"{self._created}/{what}",
            body,
            effect=effect,
            within=self._service.settings.create_timeout,
        )

    async def session(self, key: str) -> str:
        """The service's session of a key: one for each session of the gateway, and one for what
        belongs to none. It costs nothing and ends by itself."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._sessions:
                call = self.create("sessions", "making a session", None, Effect.NONE)
                self._sessions[key] = await self._service.call(
                    call, lambda answer: body_of(answer).fields("session").text("id")
                )
            self._sessions.move_to_end(key)
        while len(self._sessions) > SESSIONS_KEPT:
            oldest, _ = self._sessions.popitem(last=False)
            self._locks.pop(oldest, None)
        return self._sessions[key]

    async def in_session(self, key: str, make: Callable[[str], Awaitable[T]]) -> T:
        """Make something in the session of a key: in a fresh one if that of before is refused, as
        it may have ended meanwhile. Raises GatewayError."""
        kept = self._sessions.get(key)
        if kept is not None:
            self._sessions.move_to_end(key)
            try:
                return await make(kept)
            except GatewayError as error:
                status = error.metadata.get("upstream_status")
                if status not in _GONE or error.kind is Kind.OUTCOME_UNKNOWN:
                    raise
            if self._sessions.get(key) == kept:
                del self._sessions[key]
        return await make(await self.session(key))

    async def models(self, patience: float | None = None) -> Sequence[SupportedModel]:
        """The base models."""
        call = Call("capabilities", self.route("capabilities"), method="GET", patience=patience)
        return await self._service.call(call, lambda answer: models_from_json(body_of(answer)))

    async def runs(self) -> Sequence[Run]:
        """The account's runs, as far as they can be read: some of long ago have no address."""
        call = Call("runs", f"{self._created}/runs", method="GET")

        def read(answer: Answer) -> list[Run]:
            found = []
            for index, value in enumerate(body_of(answer).items("runs")):
                try:
                    found.append(run_from_json(Fields(value, f"runs[{index}]")))
                except GatewayError:
                    continue
            return found

        return await self._service.call(call, read)

    async def checkpoint(self, upstream_path: str) -> StoredCheckpoint:
        """A checkpoint by its path at the service. Raises GatewayError, NOT_FOUND if it is not
        there."""
        query = urlencode({"checkpoint_path": upstream_path})
        operation = f"looking up {upstream_path}"
        call = Call(operation, f"{self.route('checkpoints')}?{query}", method="GET")
        found = await self._service.call(call, lambda each: checkpoints_from_json(body_of(each)))
        target = "sampler" if "/sampler_weights/" in upstream_path else "trainer"
        fitting = [each for each in found if each.target in ("", target)]
        if not fitting:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
                f"backend {self._service.name!r}: {operation}: there is none",
                backend=self._service.name,
            )
        return fitting[0]


def _read_teams(answer: Answer) -> dict[str, str]:
    """The ids of the teams by name."""
    value = read_json(answer.body)
    rows = value if isinstance(value, list) else Fields(value).items("teams")
    teams = (Fields(row, f"teams[{index}]") for index, row in enumerate(rows))
    return {team.text("name"): team.text("id") for team in teams}
