"""A configuration becomes a running gateway, and a running gateway ends well.

Start: what can be wrong with addresses, certificates and folders is found first, before a model is
loaded; the doors open last, so whoever is let in finds a gateway that works.

Stop, on SIGTERM or SIGINT: health checks turn NOT_SERVING, new work is refused with UNAVAILABLE,
what runs gets its grace, then the doors close and the store is written. A second signal stops at
once: checkpoints and store survive that as they survive a kill.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from tinkergate import __version__, composition
from tinkergate.composition import Door
from tinkergate.config import Config
from tinkergate.core.gateway import Gateway
from tinkergate.errors import GatewayError
from tinkergate.ingress.address import Address, ListenError
from tinkergate.rendering import Tokenizers
from tinkergate.store import DataDirInUseError, DataDirLock, SchemaError, Store
from tinkergate.telemetry import configure_logging, log_event

CLOSING_TIME = 5.0
"""Seconds for answers that are still on their way when all work behind them is done."""

_logger = logging.getLogger("tinkergate.server")


Addresses = Mapping[str, Address]
"""Where the doors listen, by their names."""


class StartError(Exception):
    """The gateway cannot start. The text is written for people, one line."""


class Server:
    """A gateway and its doors: `start` once, then `stop` once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._gateway: Gateway | None = None
        self._doors: Mapping[str, Door] = {}
        self._lock: DataDirLock | None = None

    async def start(self) -> Addresses:
        """Open everything. Answers where the doors listen. Raises StartError, and then has closed
        what it had opened."""
        try:
            return await self._start()
        except BaseException as error:
            await self.stop(0.0)
            if (message := _explain(error)) is None:
                raise
            raise StartError(message) from error

    async def stop(self, grace: float) -> None:
        """Close everything. Running operations get `grace` seconds; meanwhile, and until their
        results are fetched or `CLOSING_TIME` is over, the doors answer."""
        for door in self._doors.values():
            await door.drain()
        if self._gateway is not None:
            await self._gateway.close(grace)
            self._gateway = None
        closing = [door.stop(min(grace, CLOSING_TIME)) for door in self._doors.values()]
        self._doors = {}
        await asyncio.gather(*closing)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _start(self) -> Addresses:
        config = self._config
        doors = composition.doors(config)
        self._lock = DataDirLock(config.data_dir)
        scratch = config.limits.scratch_dir or config.data_dir / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        store = Store(config.store_url or f"sqlite:///{config.data_dir / 'tinkergate.db'}")
        backends = await composition.backends(config)
        settings = replace(config.limits, scratch_dir=scratch)
        tokenizers = Tokenizers(_tokenizer_folder)
        gateway = Gateway(
            backends,
            store,
            settings,
            tokenizers=tokenizers,
            names=composition.model_names(config),
            default_backend=config.default_backend,
        )
        await gateway.start()
        self._gateway, self._doors = gateway, doors
        return {name: await door.start(gateway) for name, door in doors.items()}


def run(config: Config, announce: Callable[[Addresses], None]) -> None:
    """Serve until a signal ends it. `announce` is called once clients can connect. Raises
    StartError."""
    configure_logging(config.log.level, config.log.format)
    # Until it serves there is nothing to end well, so Ctrl-C need not wait for what is loading.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(_serve(config, announce))


async def _serve(config: Config, announce: Callable[[Addresses], None]) -> None:
    server = Server(config)
    facts = {"version": __version__, "data_dir": str(config.data_dir)}
    log_event(_logger, logging.INFO, "starting", facts)
    addresses = await server.start()
    told = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if told.is_set():
            log_event(_logger, logging.WARNING, "stopping at once", {"signal": number.name})
            # Not even the engine's thread is waited for. The exit code is a shell's for the signal.
            os._exit(128 + number)
        log_event(_logger, logging.INFO, "draining", {"signal": number.name, "grace": config.grace})
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    listening = {name: str(address) for name, address in addresses.items()}
    log_event(_logger, logging.INFO, "listening", listening)
    announce(addresses)
    await told.wait()
    await server.stop(config.grace)
    log_event(_logger, logging.INFO, "stopped", {})


def _explain(error: BaseException) -> str | None:
    """One line about a failure that the operator can mend; None for a fault of ours."""
    match error:
        case StartError() | ListenError() | DataDirInUseError() | SchemaError() | GatewayError():
            return " ".join(str(error).split())
        case SQLAlchemyError():
            return f"the store cannot be opened: {str(error).splitlines()[0]}"
        case OSError(filename=str() as name, strerror=str() as reason):
            return f"{name}: {reason}"
    return None


def _tokenizer_folder(name: str) -> Path:
    """Where this machine has a tokenizer. Raises GatewayError, and ImportError without the engine's
    libraries."""
    from tinkergate.engine.model_files import ModelFiles

    return ModelFiles().tokenizer_path(name)
