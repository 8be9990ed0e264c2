"""The weights of samplers: a few in memory, the others on disk until they are used again.

A sampler lives as long as its session, and a training loop makes one each step. So that memory does
not grow with the loop, only those that were used last stay in it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import OrderedDict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tinkergate.engine.engine import Engine
from tinkergate.engine.snapshots import Snapshot
from tinkergate.errors import ErrorReason, GatewayError, Kind

_log = logging.getLogger(__name__)


class _Entry:
    """The weights of one sampler."""

    def __init__(self, snapshot: Snapshot, folder: Path) -> None:
        self.loaded = snapshot.loaded
        self.snapshot: Snapshot | None = snapshot
        """None while they are on disk only."""
        self.folder = folder
        self.written = False
        """Whether they are in `folder`: they never change, so once is enough."""
        self.lock = asyncio.Lock()
        """Held while they are written, read or removed."""


class SamplerShelf:
    """The weights of all samplers by the samplers' ids. For the event loop."""

    def __init__(self, engine: Engine, scratch: Path, in_memory: int) -> None:
        """`scratch` is a folder for what is not kept `in_memory`, empty at every start."""
        self._engine = engine
        self._scratch = scratch
        self._in_memory = in_memory
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """The one used longest ago first."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = 0

    async def start(self) -> None:
        """Clear up after a process that was killed."""
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def close(self) -> None:
        """Forget everything."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._entries.clear()
        await self.start()

    def put(self, sampler_id: str, snapshot: Snapshot) -> None:
        """Keep a sampler's weights, and with them the caller's hold."""
        self._numbers += 1
        self._entries[sampler_id] = _Entry(snapshot, self._scratch / str(self._numbers))
        self._make_room()

    async def hold(self, sampler_id: str) -> Snapshot:
        """A sampler's weights, held for the caller. Raises NOT_FOUND."""
        while True:
            entry = self._entries.get(sampler_id)
            if entry is None:
                raise GatewayError(
                    Kind.NOT_FOUND,
                    ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND,
                    f"there is no sampler {sampler_id!r}",
                )
            self._entries.move_to_end(sampler_id)
            if entry.snapshot is not None:
                return entry.snapshot.hold()
            # A caller who goes away must not stop the reading, which others may wait for.
            await asyncio.shield(self._run(self._read(entry)))
            self._make_room()

    def drop(self, sampler_id: str) -> None:
        """Let go of a sampler's weights. Unknown ids are no error."""
        entry = self._entries.pop(sampler_id, None)
        if entry is not None:
            self._run(self._remove(entry))

    def _make_room(self) -> None:
        kept = [
            entry
            for entry in self._entries.values()
            if entry.snapshot is not None and entry.snapshot.adapter is not None
        ]
        for entry in kept[: max(0, len(kept) - self._in_memory)]:
            if not entry.lock.locked():
                self._run(self._write(entry))

    async def _write(self, entry: _Entry) -> None:
        async with entry.lock:
            snapshot = entry.snapshot
            if snapshot is None:
                return
            if not entry.written:
                try:
                    await asyncio.wrap_future(
                        self._engine.write_snapshot(snapshot, entry.folder).future
                    )
                except GatewayError as error:
                    _log.warning("the weights of a sampler stay in memory: %s", error)
                    return
                entry.written = True
            entry.snapshot = None
            snapshot.let_go()

    async def _read(self, entry: _Entry) -> None:
        async with entry.lock:
            if entry.snapshot is None and entry.written:
                opening = self._engine.open_snapshot(entry.loaded, entry.folder)
                entry.snapshot = await asyncio.wrap_future(opening.future)

    async def _remove(self, entry: _Entry) -> None:
        async with entry.lock:
            if entry.snapshot is not None:
                entry.snapshot.let_go()
                entry.snapshot = None
            if entry.written:
                entry.written = False
                await asyncio.to_thread(shutil.rmtree, entry.folder, ignore_errors=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
