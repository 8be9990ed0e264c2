"""Links that anybody may follow for a while: the path and the time of their end are signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from tinkergate.errors import ErrorReason, GatewayError, Kind

LIFETIME: Final = 900.0
EXPIRES: Final = "expires"
SIGNATURE: Final = "signature"
"""The parameters that a link carries in its query."""


@dataclass(frozen=True)
class Link:
    """A signed link."""

    url: str
    expires: datetime


@dataclass(frozen=True)
class SignedUrls:
    """Makes links, and checks those that are followed."""

    secret: bytes
    """The key of the signature, 32 bytes, for nothing else."""
    lifetime: float = LIFETIME
    """How long a link is good for, in seconds."""
    now: Callable[[], float] = time.time
    """Seconds since 1970."""

    def link(self, base_url: str, path: str) -> Link:
        """A link to `path`, not yet escaped, under `base_url`, which has no slash at its end."""
        expires = int(self.now() + self.lifetime)
        query = f"{EXPIRES}={expires}&{SIGNATURE}={self._signature(path, str(expires))}"
        url = f"{base_url}{quote(path, safe='/:')}?{query}"
        return Link(url, datetime.fromtimestamp(expires, UTC))

    def check(self, path: str, expires: str, signature: str) -> None:
        """Let a followed link pass, given its unescaped path and its parameters. Raises
        GatewayError (DENIED)."""
        expected = self._signature(path, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise _denied("the link's signature is not this gateway's, or not of this path")
        if int(expires) <= self.now():
            raise _denied("the link has expired; ask for a new one")

    def _signature(self, path: str, expires: str) -> str:
        signed = hmac.digest(self.secret, f"{expires}\n{path}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(signed).decode().rstrip("=")


def _denied(message: str) -> GatewayError:
    return GatewayError(Kind.DENIED, ErrorReason.ERROR_REASON_DENIED, message)
