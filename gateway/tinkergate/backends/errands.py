"""Work that goes on by itself, and whose failure matters to nobody but the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Errands:
    """The tasks that nobody waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(self, work: Coroutine[Any, Any, object], doing: str) -> None:
        """Have `work` done. `doing` is a phrase for the log, such as "closing a sampler"."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.warning("%s failed: %s", doing, error)

        task.add_done_callback(ended)

    async def finish(self, within: float) -> None:
        """Wait for all of them; what is not done in `within` seconds is given up."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
