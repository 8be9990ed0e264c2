"""A backend under test, Loops behind it, and the engine itself to compare with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy
from local_backend import make_backend
from loops_upstream import KEY, Capacity, LoopsUpstream, StartLoops

from tinkergate.backends import pauses
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.loops import operations
from tinkergate.backends.loops.backend import LoopsBackend
from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.store import Store


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is ever waited for for longer than it takes."""
    monkeypatch.setattr(pauses, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(pauses, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(operations, "SHORT_POLL", 0.0)


@pytest.fixture
async def start_loops(micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[StartLoops]:
    async with AsyncExitStack() as stack:

        async def start(capacity: Capacity) -> LoopsUpstream:
            folder = tmp_path / capacity
            folder.mkdir()
            backend = make_backend(micro_model_dir, folder)
            gateway = Gateway([backend], Store(f"sqlite:///{folder}/gateway.db"))
            await gateway.start()
            stack.push_async_callback(gateway.close, 1)
            door = HttpDoor(
                HttpSettings(listen="127.0.0.1:0", long_poll=2.0, loops_capacity=capacity),
                data_dir=folder,
                api_keys=[KEY],
            )
            address = await door.start(gateway)
            stack.push_async_callback(door.stop, 1)
            proxy = await stack.enter_async_context(FaultyProxy(str(address)))
            return LoopsUpstream(gateway, backend, proxy, capacity)

        yield start


@pytest.fixture(params=["serverless", "dedicated"])
async def upstream(request: Any, start_loops: StartLoops) -> LoopsUpstream:
    return await start_loops(request.param)


@pytest.fixture
async def far(upstream: LoopsUpstream) -> AsyncIterator[LoopsBackend]:
    """The backend under test, started."""
    backend = upstream.backend()
    await backend.start()
    await backend.models()
    try:
        yield backend
    finally:
        await backend.close()


@pytest.fixture
async def near(micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """The engine without anything in between, to compare with."""
    backend = make_backend(micro_model_dir, tmp_path / "near")
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()
