"""The checkpoints that were sampled with last, kept in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from tinkergate.engine.snapshots import Snapshot


class _Entry:
    """A snapshot that is being read or was read."""

    def __init__(self, reading: asyncio.Task[Snapshot]) -> None:
        self.reading = reading
        self.waiting = 0
        """Callers who have yet to take hold of it."""
        self.dropped = False

    def free_if_unwanted(self) -> None:
        """Let go of the cache's own hold once the cache has dropped it and nobody waits."""
        if self.dropped and not self.waiting:
            self.reading.add_done_callback(_let_go)


class SnapshotCache:
    """Snapshots of checkpoints by their paths; the one used longest ago goes first. For the event
    loop."""

    def __init__(self, read: Callable[[str], Coroutine[Any, Any, Snapshot]], size: int) -> None:
        """`read` makes the snapshot of a path."""
        self._read = read
        self._size = size
        self._recent: OrderedDict[str, _Entry] = OrderedDict()

    async def get(self, path: str) -> Snapshot:
        """The snapshot of a checkpoint, held for the caller. Callers of the same path at the same
        time wait for one reading, which goes on if one of them is cancelled."""
        entry = self._recent.get(path)
        if entry is None:
            entry = self._recent[path] = _Entry(asyncio.create_task(self._read(path)))
        self._recent.move_to_end(path)
        entry.waiting += 1
        while len(self._recent) > self._size:
            self.drop(next(iter(self._recent)))
        try:
            return (await asyncio.shield(entry.reading)).hold()
        except BaseException:
            if _failed(entry.reading) and self._recent.get(path) is entry:
                self.drop(path)
            raise
        finally:
            entry.waiting -= 1
            entry.free_if_unwanted()

    def drop(self, path: str) -> None:
        """Forget a checkpoint that is no longer what it was."""
        entry = self._recent.pop(path, None)
        if entry is not None:
            entry.dropped = True
            entry.free_if_unwanted()


def _failed(reading: asyncio.Task[Snapshot]) -> bool:
    return reading.done() and (reading.cancelled() or reading.exception() is not None)


def _let_go(reading: asyncio.Task[Snapshot]) -> None:
    if not _failed(reading):
        reading.result().let_go()
