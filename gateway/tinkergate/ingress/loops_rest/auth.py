"""Who calls: a key in `Authorization`, as `Api-Key` or `Bearer` (wire section 2)."""

from __future__ import annotations

from starlette.datastructures import Headers

from tinkergate.ingress.keys import refused
from tinkergate.ingress.loops_rest.context import SIGNED, Context

_SCHEMES = frozenset({"api-key", "bearer"})


def authenticate(context: Context, path: str, headers: Headers) -> None:
    """Let the caller in. Raises GatewayError (UNAUTHENTICATED)."""
    if path.startswith(SIGNED) or not context.keys:
        return
    sent = headers.getlist("x-api-key")
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() not in _SCHEMES or not key.strip():
            raise refused("the authorization is not of the form 'Api-Key <key>' or 'Bearer <key>'")
        sent.append(key.strip())
    context.keys.check_sent(sent)
