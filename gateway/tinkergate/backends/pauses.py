"""How long to wait before asking again, and when to give up (wire section 1.5)."""

from __future__ import annotations

import asyncio
import random

BILLING_INTERVAL = 5.0
"""How often is asked again while the service wants to be paid first."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0


class Pauses:
    """The waiting of one request that is sent until it is answered."""

    def __init__(self, patience: float, billing_patience: float) -> None:
        """`patience` is how long trouble is put up with, and `billing_patience` how long a request
        for payment, in seconds."""
        self._patience = patience
        self._billing_patience = billing_patience
        self._loop = asyncio.get_running_loop()
        self._well = self._loop.time()
        """When there was no trouble last."""
        self._billing_since: float | None = None
        self._busy_since: float | None = None
        self._tries = 0

    def all_well(self) -> None:
        """The service gave an answer of use."""
        self._well = self._loop.time()
        self._billing_since = self._busy_since = None
        self._tries = 0

    async def trouble(self, asked: float | None = None, *, patience: float | None = None) -> bool:
        """Wait before the next try, for as long as the service has `asked` if it has, else longer
        each time. False, at once, if patience (another than usual, if one is given) is at its
        end."""
        pause = asked
        if pause is None:
            pause = min(FIRST_PAUSE * 2.0**self._tries, LONGEST_PAUSE) * random.uniform(0.75, 1.0)
        limit = self._patience if patience is None else patience
        if self._loop.time() + pause - self._well > limit:
            return False
        self._tries += 1
        self._billing_since = None
        await asyncio.sleep(pause)
        return True

    async def busy(self, patience: float, asked: float | None = None) -> bool:
        """The service is not ready yet, and says so: wait before the next try, for as long as it
        has `asked` if it has, else longer each time. False, at once, if that would take more than
        `patience` seconds in a row."""
        pause = min(FIRST_PAUSE * 2.0**self._tries, LONGEST_PAUSE) if asked is None else asked
        now = self._loop.time()
        if self._busy_since is None:
            self._busy_since = now
        if now + pause - self._busy_since > patience:
            return False
        self._tries += 1
        await asyncio.sleep(pause)
        # To wait one's turn is no trouble.
        self._well = self._loop.time()
        return True

    async def billing(self) -> bool:
        """The service wants to be paid: wait before the next try. False if patience is at its
        end."""
        now = self._loop.time()
        if self._billing_since is None:
            self._billing_since = now
        if now + BILLING_INTERVAL - self._billing_since > self._billing_patience:
            return False
        await asyncio.sleep(BILLING_INTERVAL)
        # Waiting for money is no trouble.
        self._well = self._loop.time()
        return True
