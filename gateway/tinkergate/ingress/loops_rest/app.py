"""Loops' HTTP API put together: who calls, and which route answers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.http.calls import Calls
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.ingress.loops_rest import control, samplers, trainers
from tinkergate.ingress.loops_rest.auth import authenticate
from tinkergate.ingress.loops_rest.context import CONTROL, SAMPLERS, SIGNED, TRAINERS, Context
from tinkergate.ingress.loops_rest.errors import control_error, sampler_error, trainer_error

QUIET = ("/health", "/wake")
"""Clients repeat these all the time."""


class LoopsRest:
    """The ASGI app of one of the three surfaces. Raises GatewayError."""

    def __init__(self, context: Context, routes: Sequence[Route]) -> None:
        self._context = context
        self._router = Router(routes, redirect_slashes=False, default=_no_route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        authenticate(self._context, scope["path"], Headers(scope=scope))
        # Routes raise what is wrong with a method, instead of answering, where there is an app.
        scope["app"] = self
        await self._router(scope, receive, send)


def surfaces(context: Context, settings: HttpSettings) -> list[tuple[str, ASGIApp]]:
    """The apps by the paths that they are under: what a failure is told as differs."""
    found = (
        (TRAINERS, trainers.routes(context), trainer_error),
        (SAMPLERS, samplers.routes(context), sampler_error),
        (CONTROL, control.routes(context), control_error),
        (SIGNED, context.downloads.routes(), control_error),
    )
    return [
        (path, Calls(LoopsRest(context, routes), render, settings, quiet=QUIET))
        for path, routes, render in found
    ]


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    raise GatewayError(
        Kind.NOT_FOUND,
        ErrorReason.ERROR_REASON_UNSUPPORTED,
        f"there is no route {scope['method']} {scope['path'][:300]}",
    )
