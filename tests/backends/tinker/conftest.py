"""A backend under test, a service behind it, and the engine itself to compare with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy
from local_backend import make_backend
from tinker_upstream import KEYS, Dialect, StartUpstream, Upstream

from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.store import Store


@pytest.fixture
async def start_upstream(micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[StartUpstream]:
    async with AsyncExitStack() as stack:

        async def start(dialect: Dialect) -> Upstream:
            folder = tmp_path / dialect
            folder.mkdir()
            backend = make_backend(micro_model_dir, folder)
            gateway = Gateway([backend], Store(f"sqlite:///{folder}/gateway.db"))
            await gateway.start()
            stack.push_async_callback(gateway.close, 1)
            door = HttpDoor(
                HttpSettings(listen="127.0.0.1:0", long_poll=2.0),
                data_dir=folder,
                api_keys=[KEYS[dialect]],
                profile="mint" if dialect == "mint" else "full",
            )
            address = await door.start(gateway)
            stack.push_async_callback(door.stop, 1)
            proxy = await stack.enter_async_context(FaultyProxy(str(address)))
            return Upstream(gateway, backend, proxy, dialect)

        yield start


@pytest.fixture(params=["tinker", "mint"])
async def upstream(request: Any, start_upstream: StartUpstream) -> Upstream:
    return await start_upstream(request.param)


@pytest.fixture
async def far(upstream: Upstream) -> AsyncIterator[TinkerBackend]:
    """The backend under test, started."""
    backend = upstream.backend()
    await backend.start()
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
