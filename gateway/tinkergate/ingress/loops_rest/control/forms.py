"""What is told in several places of the control plane (wire section 4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.loops_rest.context import CONTROL

TEAM = "default"
"""The one team there is, by its name and its id."""

USER = {"email": ""}
"""Who made things is not known: keys have no owners here."""


def iso(time: Timestamp) -> str:
    """A time as JSON tells it."""
    return time.ToJsonString()


def both(path: str, handler: Callable[[Request], Awaitable[Response]], method: str) -> list[Route]:
    """The two routes of something that a team can be named for."""
    return [
        Route(f"{CONTROL}loops/{path}", handler, methods=[method]),
        Route(f"{CONTROL}teams/{{team_id}}/loops/{path}", of_team(handler), methods=[method]),
    ]


def of_team(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """The handler, for the one team."""

    async def handle(request: Request) -> Response:
        team_id = request.path_params["team_id"]
        if team_id != TEAM:
            raise not_found(f"there is no team {team_id!r}; there is one, {TEAM!r}")
        return await handler(request)

    return handle


def not_found(message: str) -> GatewayError:
    """Something that is not there."""
    return GatewayError(Kind.NOT_FOUND, ErrorReason.ERROR_REASON_MODEL_NOT_FOUND, message)
