"""An HTTP server inside the gateway's own event loop: it installs no signal handlers, starts no
thread and keeps no clock of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from tinkergate.ingress.address import Address, ListenError, check_free
from tinkergate.ingress.http.connection import Connection
from tinkergate.ingress.http.settings import HttpSettings

BACKLOG = 2048
CLOSING_SECONDS = 1.0
"""How long the ends of connections are waited for."""

FLAG = "--http"


class Listener:
    """Serves an ASGI app over HTTP/1.1 on one address."""

    def __init__(
        self, app: ASGIApp, address: Address, tls: ssl.SSLContext | None, settings: HttpSettings
    ) -> None:
        self._address = address
        self._tls = tls
        self._head_timeout = settings.head_timeout
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._all_lost = asyncio.Event()
        self._config = Config(
            app,
            interface="asgi3",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=round(settings.keep_alive),
            limit_concurrency=settings.max_connections,
        )
        # Requests that are no HTTP are told to whoever sent them, which is enough.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    async def start(self) -> Address:
        """Listen on every address of the host, on one port. Raises ListenError."""
        self._config.load()
        loop = asyncio.get_running_loop()
        port = self._address.port
        for listening in _sockets(self._address):
            server = await loop.create_server(
                self._connection, sock=listening, ssl=self._tls, backlog=BACKLOG
            )
            self._servers.append(server)
            port = listening.getsockname()[1]
        return self._address._replace(port=port)

    async def stop(self, grace: float) -> None:
        """Stop listening; calls that are running get `grace` seconds to end, and those that do not
        are cancelled."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        for seconds in (grace, CLOSING_SECONDS):
            if tasks := set(self._state.tasks):
                _, late = await asyncio.wait(tasks, timeout=seconds)
                for task in late:
                    task.cancel()
        for connection in list(self._state.connections):
            connection.transport.close()
        if self._state.connections:
            self._all_lost.clear()
            try:
                async with asyncio.timeout(CLOSING_SECONDS):
                    await self._all_lost.wait()
            except TimeoutError:
                for connection in list(self._state.connections):
                    connection.transport.abort()

    def _connection(self) -> Connection:
        return Connection(self._config, self._state, self._head_timeout, self._connection_lost)

    def _connection_lost(self) -> None:
        if not self._state.connections:
            self._all_lost.set()


def _sockets(address: Address) -> list[socket.socket]:
    """Bound sockets of all addresses of a host, on one port."""
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    port = address.port
    for family, kind, protocol, _, sockaddr in found:
        listening = socket.socket(family, kind, protocol)
        sockets.append(listening)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listening.bind((sockaddr[0], port, *sockaddr[2:]))
        except OSError:
            for each in sockets:
                each.close()
            check_free(address, FLAG)  # Somebody may have come first since it was checked.
            raise ListenError(f"cannot listen on {address}") from None
        port = listening.getsockname()[1]
    return sockets
