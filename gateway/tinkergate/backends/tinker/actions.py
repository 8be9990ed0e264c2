"""Action sessions of vision-language-action models at MinT (wire section 13.6)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.tinker.service import Call, Effect, Service, nothing
from tinkergate.backends.tinker.sessions import UpstreamSessions
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.write_requests import observation_json
from tinkergate.errors import GatewayError, Kind, invalid_field, unsupported
from tinkergate.http import Answer
from tinkergate.v1 import (
    ActBatchRequest,
    ActBatchResponse,
    ActRequest,
    ActResponse,
    CreateActionSessionRequest,
)

_ROUTE = "mint/action_sessions"


class ActionSessions:
    """The action sessions that are open."""

    def __init__(
        self, service: Service, sessions: UpstreamSessions, checkpoints: KnownCheckpoints
    ) -> None:
        self._service = service
        self._sessions = sessions
        self._checkpoints = checkpoints
        self._owners: dict[str, str] = {}
        """The session of the gateway that each belongs to."""

    async def create(self, request: CreateActionSessionRequest) -> str:
        """Open one. Answers its id."""
        if self._service.settings.dialect != "mint":
            raise unsupported("action sessions", self._service.name)
        session = await self._sessions.use(request.session_id)
        try:
            body: dict[str, Any] = {
                "session_id": session.session_id,
                "base_model": request.base_model,
            }
            if request.model_path:
                known = self._checkpoints.find(request.model_path)
                body["model_path"] = known.upstream_path
            if request.owner_id:
                body["owner_id"] = request.owner_id
            call = Call("opening an action session", _ROUTE, body)
            action_session_id = await self._service.call(
                call, lambda answer: Fields(read_json(answer.body)).text("action_session_id")
            )
        except BaseException:
            self._sessions.release(request.session_id)
            raise
        self._owners[action_session_id] = request.session_id
        return action_session_id

    async def act(self, request: ActRequest) -> ActResponse:
        """What to do for one observation. A repeat could act on another moment, so an answer that
        is lost stays lost."""
        body = {"observation": observation_json(request.observation)}
        return ActResponse(result=await self._asked(request.action_session_id, "act", body))

    async def act_batch(self, request: ActBatchRequest) -> ActBatchResponse:
        """What to do for each of several observations."""
        body = {"observations": [observation_json(seen) for seen in request.observations]}
        result = await self._asked(request.action_session_id, "act_batch", body)
        return ActBatchResponse(result=result)

    async def _asked(self, action_session_id: str, what: str, body: dict[str, Any]) -> Struct:
        call = Call(
            f"{what} of action session {action_session_id}",
            f"{_ROUTE}/{quote(action_session_id, safe='')}/{what}",
            body,
            effect=Effect.ONCE,
        )
        return await self._service.call(call, _read_struct)

    async def close_session(self, action_session_id: str) -> None:
        """End one. Unknown ids are no error."""
        owner = self._owners.pop(action_session_id, None)
        if owner is None:
            return
        call = Call(
            f"closing action session {action_session_id}",
            f"{_ROUTE}/{quote(action_session_id, safe='')}",
            method="DELETE",
        )
        try:
            await self._service.call(call, nothing)
        except GatewayError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        finally:
            self._sessions.release(owner)


def _read_struct(answer: Answer) -> Struct:
    fields = Fields(read_json(answer.body))
    try:
        return ParseDict(fields.value, Struct())
    except (ParseError, ValueError) as error:
        raise invalid_field("body", f"cannot be passed on: {error}") from None
