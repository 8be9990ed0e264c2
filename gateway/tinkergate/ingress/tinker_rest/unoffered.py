"""Routes of Tinker's service that this gateway does not have, answered honestly.

The status is 404: the SDKs give up on it at once and show the words, while 501 like every status
from 500 on would be called again for minutes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.tinker_rest.context import API, Context

_ACCOUNTS = "concerns the accounts of Tinker's own service and is not offered by this gateway"

_UNOFFERED: tuple[tuple[str, str, str], ...] = (
    ("GET", "audit", f"the audit log {_ACCOUNTS}"),
    ("GET", "billing/usage/events", f"billing {_ACCOUNTS}"),
    ("GET", "billing/usage/checkpoints/current", f"billing {_ACCOUNTS}"),
    ("GET", "auth/apikey/me", f"the description of an API key {_ACCOUNTS}"),
    ("DELETE", "auth/apikey/me", f"the removal of an API key {_ACCOUNTS}"),
    (
        "POST",
        "create_custom_loss",
        "custom losses on the server are not enabled on this gateway; the client evaluates them "
        "itself as long as client/config says custom_loss_server_side false",
    ),
)


def routes(context: Context) -> list[Route]:  # noqa: ARG001
    """The routes."""
    return [
        Route(f"{API}/{path}", _refusal(words), methods=[method])
        for method, path, words in _UNOFFERED
    ]


def _refusal(words: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:  # noqa: ARG001
        raise GatewayError(Kind.NOT_FOUND, ErrorReason.ERROR_REASON_UNSUPPORTED, words)

    return refuse
