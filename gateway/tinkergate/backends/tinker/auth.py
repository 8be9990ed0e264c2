"""The key that requests carry: the account's own, or a JWT that it is exchanged for (wire sections
1.3, 2.5 and 13.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import jwt

EARLY = 300.0
"""How long before its end a JWT is exchanged anew, if it lives that long; else after half of its
life."""
UNTOLD_LIFE = 60.0
"""How long a JWT is used that does not say when it ends."""

Exchange = Callable[[str], Awaitable[str]]
"""Exchanges the account's key for a JWT."""


class Credentials:
    """Knows what the header X-API-Key has to say."""

    def __init__(
        self, api_key: str, exchange: Exchange, now: Callable[[], float] = time.time
    ) -> None:
        self.api_key = api_key
        self.exchanging = False
        """Whether requests carry a JWT. The service's configuration decides."""
        self._exchange = exchange
        self._now = now
        self._token = ""
        self._good_until = 0.0
        self._lock = asyncio.Lock()

    async def current(self) -> str:
        """The key for the next request. Raises GatewayError if it cannot be exchanged."""
        if not self.exchanging:
            return self.api_key
        if self._now() < self._good_until:
            return self._token
        async with self._lock:
            # Another request may have done it meanwhile.
            if self._now() >= self._good_until:
                token = await self._exchange(self.api_key)
                self._token, self._good_until = token, self._use_until(token)
            return self._token

    def refused(self, used: str) -> bool:
        """The service did not take `used`. True if another key is to be had for one more try."""
        if not self.exchanging or used == self.api_key:
            return False
        if used == self._token:
            self._good_until = 0.0
        return True

    def _use_until(self, token: str) -> float:
        """Until when a token is used. The service signs it for itself, not for us."""
        now = self._now()
        try:
            claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
            ends = float(claims["exp"])
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            return now + UNTOLD_LIFE
        return max(ends - EARLY, now + (ends - now) / 2)
