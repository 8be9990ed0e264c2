"""What the console's routes read from a request beside its body."""

from __future__ import annotations

from starlette.requests import Request

from tinkergate.errors import invalid_field

_SCOPES = ("owned", "accessible")


def window_of(request: Request, limit: int) -> tuple[int, int]:
    """`offset` and `limit` of the query, with the limit that the route has unless another is
    given. Raises GatewayError (INVALID)."""
    return _number(request, "offset", 0), _number(request, "limit", limit)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise invalid_field(name, f"is {text[:80]!r}; must be an integer from 0")
    return int(text)


def check_scope(request: Request) -> None:
    """`access_scope`: whoever has a key owns all that the gateway has, so that both are the same.
    Raises GatewayError (INVALID) for anything else."""
    scope = request.query_params.get("access_scope", _SCOPES[0])
    if scope not in _SCOPES:
        raise invalid_field("access_scope", f"is {scope[:80]!r}; must be 'owned' or 'accessible'")


def run_of(request: Request) -> str:
    """The training run in the path."""
    return str(request.path_params["run_id"])


def path_of(request: Request) -> str:
    """The canonical path of the checkpoint in the path. Not checked: the core does."""
    parts = request.path_params
    return f"tinker://{parts['run_id']}/{parts['kind']}/{parts['name']}"
