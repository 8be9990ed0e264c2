"""API keys: who may call.

A caller sends its key as `authorization: Bearer <key>` or as `x-api-key: <key>`. Where a gateway
has keys, every call needs one of them. Only health checks stay open, which a door answers before
it asks here: probes of orchestrators cannot send keys, and learn nothing but whether it serves.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ErrorReason

_BEARER = "bearer "


class ApiKeys:
    """The keys of a gateway. Without any, every call is let in."""

    def __init__(self, keys: Iterable[str]) -> None:
        # Digests have one length, so that a comparison takes the same time for every key sent.
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Refuse the call unless every key in its metadata is right, and there is one. Raises
        GatewayError (UNAUTHENTICATED), which tells nothing of the keys."""
        if not self._digests:
            return
        sent = _keys_of(metadata)
        if not sent:
            raise _refused("no API key was sent: send it as 'authorization: Bearer <key>'")
        # Every key is compared to every digest, whichever fits, for the same reason as above.
        right = [self._known(key) for key in sent]
        if not all(right):
            raise _refused("the API key is not known to this gateway")

    def _known(self, key: str) -> bool:
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _keys_of(metadata: Sequence[tuple[str, str | bytes]]) -> list[str]:
    keys = []
    for name, value in metadata:
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if name == "x-api-key":
            keys.append(text)
        elif name == "authorization":
            if text[: len(_BEARER)].lower() != _BEARER:
                raise _refused("the authorization is not of the form 'Bearer <key>'")
            keys.append(text[len(_BEARER) :])
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _refused(message: str) -> GatewayError:
    return GatewayError(Kind.UNAUTHENTICATED, ErrorReason.ERROR_REASON_UNAUTHENTICATED, message)
