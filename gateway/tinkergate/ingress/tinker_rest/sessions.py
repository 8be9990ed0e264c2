"""Sessions: opening, keeping alive, ending (wire sections 4.2, 4.3 and 4.5)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.dialects.tinker.read_requests import (
    create_session_request,
    finish_session_request,
)
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import HeartbeatSessionRequest


def routes(context: Context) -> list[Route]:
    """The routes."""
    sessions = _Sessions(context)
    return [
        Route(f"{API}/session_heartbeat", sessions.heartbeat, methods=["POST"]),
        Route(f"{API}/create_session", sessions.create, methods=["POST"]),
        Route(f"{API}/sessions/{{session_id}}/finish", sessions.finish, methods=["POST"]),
    ]


class _Sessions:
    def __init__(self, context: Context) -> None:
        self._sessions = context.gateway.sessions

    async def create(self, request: Request) -> Response:
        """A new session."""
        asked = create_session_request(await json_fields(request))
        # The same in all tries of one call, so that a lost answer leaves no second session behind.
        asked.request_id = request.headers.get("x-idempotency-key", "")
        created = await self._sessions.create(asked)
        return json_response({"type": "create_session", "session_id": created.session.session_id})

    async def heartbeat(self, request: Request) -> Response:
        """Keeps a session alive; 410 once it has ended, on which clients stop beating."""
        fields = await json_fields(request)
        await self._sessions.heartbeat(
            HeartbeatSessionRequest(session_id=fields.text("session_id"))
        )
        return json_response({"type": "session_heartbeat"})

    async def finish(self, request: Request) -> Response:
        """Ends a session."""
        fields = await json_fields(request)
        await self._sessions.finish(
            finish_session_request(request.path_params["session_id"], fields)
        )
        return json_response({})
