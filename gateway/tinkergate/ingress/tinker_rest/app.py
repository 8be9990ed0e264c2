"""Tinker's REST API put together: who calls, and which route answers."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from tinkergate.ingress.tinker_rest import (
    console,
    futures,
    mint,
    models,
    sampling,
    service,
    sessions,
    training,
    unoffered,
)
from tinkergate.ingress.tinker_rest.auth import HEALTH, authenticate
from tinkergate.ingress.tinker_rest.context import API, SIGNED, Context

# What is called most comes first: routes are tried in order.
_ROUTES: tuple[Callable[[Context], list[Route]], ...] = (
    futures.routes,
    sampling.routes,
    training.routes,
    sessions.routes,
    service.routes,
    models.routes,
    mint.routes,
    console.routes,
    unoffered.routes,
)

QUIET = ("/retrieve_future", "/retrieve_futures", "/session_heartbeat", "/telemetry", "/healthz")
"""Clients repeat these all the time."""

MINT_LIVE = frozenset(
    {
        HEALTH,
        f"{API}/get_server_capabilities",
        f"{API}/client/config",
        f"{API}/auth/token",
        f"{API}/create_session",
        f"{API}/session_heartbeat",
        f"{API}/telemetry",
        f"{API}/create_model",
        f"{API}/get_info",
        f"{API}/forward",
        f"{API}/forward_backward",
        f"{API}/optim_step",
        f"{API}/save_weights",
        f"{API}/load_weights",
        f"{API}/save_weights_for_sampler",
        f"{API}/create_sampling_session",
        f"{API}/asample",
        f"{API}/retrieve_future",
        models.FREE,
        f"{API}/training_runs/{{run_id}}/checkpoints/{{kind}}/{{name}}/archive",
    }
)
"""What MinT serves (wire sections 3 and 13.4), beside its own routes."""

MINT_OWN = f"{API}/mint/"


class TinkerRest:
    """The ASGI app. Raises GatewayError, and HTTPException for what no route answers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        routes = [route for make in _ROUTES for route in make(context)]
        if context.profile == "mint":
            routes = [route for route in routes if _is_live(route.path)]
        self._router = Router(routes, redirect_slashes=False, default=_no_route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        authenticate(self._context, scope["path"], Headers(scope=scope))
        # Routes raise what is wrong with a method, instead of answering, where there is an app.
        scope["app"] = self
        await self._router(scope, receive, send)


def _is_live(path: str) -> bool:
    return path in MINT_LIVE or path.startswith((MINT_OWN, SIGNED))


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    raise HTTPException(404, f"there is no route {scope['method']} {scope['path']}")
