"""Program -> gateway -> proxy -> gateway with the engine, and the names of the requests between."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from faulty_proxy import FaultyProxy, Seen
from gateway_process import KEYS, Gateway, front_config
from micro_model import write_micro_model

from tinkergate_client import Client, connect

T = TypeVar("T")

QUIET = ("session_heartbeat", "telemetry")
"""Routes whose requests are no steps of the run: they come by the clock."""

_NAMES = (
    # Tinker and MinT.
    (r"^/api/v1/(.*)$", r"\1"),
    (r"(?<=/)[^/]*:[^/]*", "*"),
)
_LOOPS_NAMES = (
    (r"^/loops/trainers/[^/]+", "trainer"),
    (r"^/loops/samplers/[^/]+(/sync)?", "sampler"),
    (r"^/loops/signed/.*", "signed"),
    (r"/operations/.*?(?=/cancel$|$)", "/operations"),
    (r"^/v1/(loops/)?", "control/"),
    (r"(?<=control/)(sessions|runs|trainers|samplers|deployments|models)/[^/]+", r"\1/*"),
    (r"(?<=control/)checkpoints/(?!validate|deploy)[^/]+", "checkpoints/*"),
    (r"(?<=\*/deployments)/[^/]+", "/*"),
)


class Point(NamedTuple):
    """One request of the run: the n-th of its route."""

    route: str
    number: int


class Chain:
    """The gateways and the proxy between them."""

    def __init__(self, folder: Path, dialect: str, capacity: str) -> None:
        """`capacity`, of Loops: what the upstream tells its trainers and samplers to be."""
        self.dialect = dialect
        self.capacity = capacity
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        model = write_micro_model(folder / "micro")
        flags = {"mint": ("--profile", "mint"), "loops": ("--loops-capacity", capacity)}
        # Some numbers of operations are lost for good: what comes after them need not wait long.
        settings = {
            "TINKERGATE_API_KEY": KEYS[dialect],
            "TINKERGATE_LIMITS_GAP_TIMEOUT": "5" if dialect == "loops" else "120",
        }
        self.upstream = Gateway(
            folder / "upstream",
            *("--model", str(model), "--http", "127.0.0.1:0", *flags.get(dialect, ())),
            environment=settings,
        )
        self.proxy = FaultyProxy(self.upstream.http)
        self.on_loop(self.proxy.__aenter__())
        config = folder / "front.toml"
        config.write_text(front_config(dialect, self.proxy.address))
        self.front = Gateway(
            folder / "front",
            *("--config", str(config)),
            environment={"UPSTREAM_KEY": KEYS[dialect]},
        )
        self.base_model = str(model)

    def route(self, seen: Seen) -> str:
        """A request's route, without what differs between runs."""
        path = seen.path.partition("?")[0]
        for pattern, name in _LOOPS_NAMES if self.dialect == "loops" else _NAMES:
            path = re.sub(pattern, name, path)
        return path

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it on the proxy's loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(timeout=300)

    def close(self) -> None:
        """End everything."""
        self.front.stop()
        self.upstream.stop()
        self.on_loop(self.proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the front."""
        with connect(self.front.grpc, patience=30.0, timeout=30.0) as client:
            yield client

    @contextmanager
    def upstream_client(self) -> Iterator[Client]:
        """A client of the upstream itself, which may be standing still."""
        with connect(self.upstream.grpc, api_key=KEYS[self.dialect], timeout=180.0) as client:
            yield client

    def restart_upstream(self) -> Callable[[], Awaitable[None]]:
        """Something to await that kills the upstream and brings it up again."""

        def restart() -> None:
            self.upstream.kill()
            self.upstream.start()
            self.proxy.upstream = self.upstream.http

        async def run() -> None:
            await asyncio.to_thread(restart)

        return run

    def pause_upstream(self, seconds: float) -> Callable[[], Awaitable[None]]:
        """Something to await after which the upstream stands still for a time."""

        async def run() -> None:
            self.upstream.freeze()
            self._loop.call_later(seconds, self.upstream.thaw)

        return run
