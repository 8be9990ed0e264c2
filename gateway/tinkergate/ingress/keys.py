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
        if self._digests:
            self.check_sent(sent_keys(metadata))

    def check_sent(self, sent: Sequence[str]) -> None:
        """As `check`, for keys that were taken out of a call already."""
        if not self._digests:
            return
        if not sent:
            raise refused("no API key was sent: send it as 'authorization: Bearer <key>'")
        # Every key is compared to every digest, whichever fits, for the same reason as above.
        right = [self._known(key) for key in sent]
        if not all(right):
            raise refused("the API key is not known to this gateway")

    def _known(self, key: str) -> bool:
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def check_id(self, wanted: str) -> None:
        """Refuse a caller who has shown the id of a key, unless the key is still good. Raises
        GatewayError (UNAUTHENTICATED)."""
        if self._digests and not any(_id(digest) == wanted for digest in self._digests):
            raise refused("the API key is not known to this gateway any more")


def key_id(key: str) -> str:
    """A short name for a key that tells nothing of it."""
    return _id(_digest(key))


def sent_keys(metadata: Sequence[tuple[str, str | bytes]]) -> list[str]:
    """The keys in the metadata of a call, names in lower case. Raises GatewayError
    (UNAUTHENTICATED) for an authorization that holds none."""
    keys = []
    for name, value in metadata:
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if name == "x-api-key":
            keys.append(text)
        elif name == "authorization":
            if text[: len(_BEARER)].lower() != _BEARER:
                raise refused("the authorization is not of the form 'Bearer <key>'")
            keys.append(text[len(_BEARER) :])
    return keys


def _id(digest: bytes) -> str:
    return digest.hex()[:16]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def refused(message: str) -> GatewayError:
    """A caller that is not known, with `message` for people."""
    return GatewayError(Kind.UNAUTHENTICATED, ErrorReason.ERROR_REASON_UNAUTHENTICATED, message)
