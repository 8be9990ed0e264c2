"""Routes of Loops' own service that this gateway does not have, answered honestly: 501, which the
SDK shows at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.loops_rest.context import CONTROL, Context

_OWN = "concerns Baseten's own service and is not offered by this gateway"

_UNOFFERED: tuple[tuple[str, str, str], ...] = (
    ("POST", "loops/checkpoints/deploy", f"the deployment of checkpoints as models {_OWN}"),
    ("POST", "loops/deployments/{id}/metrics", f"the metrics of deployments {_OWN}"),
    ("GET", "loops/deployments/{id}/logs", f"the log of deployments {_OWN}"),
    ("GET", "loops/deployments/{id}/debug_archive/files", f"the debug archive {_OWN}"),
    ("GET", "loops/user_config", f"the choice of accelerators {_OWN}"),
    ("PATCH", "loops/user_config", f"the choice of accelerators {_OWN}"),
    ("POST", "loops/debug/trainers", f"the debug route {_OWN}"),
    ("POST", "loops/debug/samplers", f"the debug route {_OWN}"),
    ("POST", "teams/{team_id}/loops/debug/trainers", f"the debug route {_OWN}"),
    ("POST", "teams/{team_id}/loops/debug/samplers", f"the debug route {_OWN}"),
    (
        "POST",
        "volumes/token",
        "volumes are not offered by this gateway: the files of checkpoints are at "
        "checkpoints/{id}/files",
    ),
)


def routes(context: Context) -> list[Route]:  # noqa: ARG001
    """The routes."""
    return [
        Route(f"{CONTROL}{path}", _refusal(words), methods=[method])
        for method, path, words in _UNOFFERED
    ]


def _refusal(words: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:  # noqa: ARG001
        raise GatewayError(Kind.UNSUPPORTED, ErrorReason.ERROR_REASON_UNSUPPORTED, words)

    return refuse
