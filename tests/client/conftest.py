"""A client of a real gateway, and a connection that breaks where a test says."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from tinkergate_client import Client, connect


class BreakingProxy:
    """Passes TCP connections on to a gateway, and breaks them on demand.

    Answers of the gateway are told by the HTTP/2 frames that carry them: HEADERS and DATA, unlike
    the SETTINGS, PING and WINDOW_UPDATE that a connection exchanges on its own.
    """

    _HEADERS, _DATA = 1, 0

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lose_answers = 0
        self.lost = threading.Event()
        """Set once an answer was lost."""
        self.connections = 0
        self._threads = [self._start(self._accept)]

    def lose_next_answer(self) -> None:
        """Break the connection when the gateway's next answer arrives, and drop that answer."""
        self.lost.clear()
        with self._lock:
            self._lose_answers += 1

    def break_connections(self) -> None:
        """Break all connections now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def close(self) -> None:
        # Wakes accept(), which closing the socket alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()
        for thread in self._threads:
            thread.join()

    def _start(self, run: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=run, args=args, daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                gateway = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self.connections += 1
                self._pairs.append((client, gateway))
            self._threads.append(self._start(self._forward, client, gateway))
            self._threads.append(self._start(self._forward_frames, gateway, client))

    def _forward(self, client: socket.socket, gateway: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                gateway.sendall(data)
        _close(client, gateway)

    def _forward_frames(self, gateway: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            stream = gateway.makefile("rb")
            while header := _exactly(stream.read(9), 9):
                length, kind = struct.unpack(">I", b"\0" + header[:3])[0], header[3]
                frame = header + _exactly(stream.read(length), length)
                if kind in (self._HEADERS, self._DATA) and self._loses():
                    break
                client.sendall(frame)
        _close(client, gateway)

    def _loses(self) -> bool:
        with self._lock:
            if not self._lose_answers:
                return False
            self._lose_answers -= 1
        self.lost.set()
        return True


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise EOFError
    return data


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@pytest.fixture
def client(gateway_process) -> Iterator[Client]:  # type: ignore[no-untyped-def]
    """A client of the shared gateway."""
    with connect(gateway_process.address) as connected:
        yield connected


@pytest.fixture
def proxy(gateway_process) -> Iterator[BreakingProxy]:  # type: ignore[no-untyped-def]
    """A proxy before the shared gateway."""
    breaking = BreakingProxy(gateway_process.address)
    yield breaking
    breaking.close()
