"""Who calls: a key, or a token that a key was exchanged for, in `X-API-Key` or, as an alias,
`Authorization: Bearer` (wire sections 1.2 and 1.3)."""

from __future__ import annotations

from starlette.datastructures import Headers

from tinkergate.errors import GatewayError
from tinkergate.ingress.keys import refused, sent_keys
from tinkergate.ingress.tinker_rest.context import API, SIGNED, Context
from tinkergate.ingress.tinker_rest.tokens import invalid_token

HEALTH = f"{API}/healthz"
_WITH_KEY = frozenset({f"{API}/client/config", f"{API}/auth/token"})
"""Here the key itself is sent. A token would do for the first only."""

_TOKEN_START = "eyJ"
"""What JSON Web Tokens begin with; no key of Tinker's or MinT's does."""

MINT_KEY_START = "sk-"


def authenticate(context: Context, path: str, headers: Headers) -> None:
    """Let the caller in. Raises GatewayError (UNAUTHENTICATED)."""
    if path == HEALTH or path.startswith(SIGNED):
        return
    sent = keys_of(headers)
    tokens = [key for key in sent if key.startswith(_TOKEN_START)]
    keys = [key for key in sent if not key.startswith(_TOKEN_START)]
    if context.profile == "mint":
        _check_mint(path, keys, tokens)
    if not context.keys:
        return
    for token in tokens:
        if path in _WITH_KEY:
            raise refused("an API key goes here, not a token")
        try:
            context.keys.check_id(context.tokens.key_id(token))
        except GatewayError as error:
            raise invalid_token(error.message) from None
    if keys or not tokens:
        context.keys.check_sent(keys)


def _check_mint(path: str, keys: list[str], tokens: list[str]) -> None:
    """MinT's keys begin with "sk-", and a caller always has one."""
    if any(not key.startswith(MINT_KEY_START) for key in keys) or not (keys or tokens):
        raise refused(f"an API key that begins with {MINT_KEY_START!r} is needed")
    if path in _WITH_KEY and not keys:
        raise refused("an API key goes here, not a token")


def keys_of(headers: Headers) -> list[str]:
    """The keys and tokens of a call. Raises GatewayError (UNAUTHENTICATED) for an authorization
    of another form."""
    return sent_keys([(name, value) for name, value in headers.items()])
