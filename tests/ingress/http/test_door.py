"""The HTTP door as a server: addresses, TLS, bounds, paths, the log, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.address import ListenError
from tinkergate.ingress.http.connection import MAX_HEAD_BYTES
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.ingress.tls import TlsFiles
from tinkergate.store import Store

LOOPBACK = "127.0.0.1:0"


class Opened:
    """A door over a gateway without a backend, which has sessions all the same."""

    def __init__(self, door: HttpDoor, host: str, port: int, client: httpx.AsyncClient) -> None:
        self.door = door
        self.host = host
        self.port = port
        self.client = client

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)


@pytest.fixture
def open_door(tmp_path: Path) -> Any:
    """Opens a door: `async with open_door(max_body_bytes=10) as opened`."""

    @contextlib.asynccontextmanager
    async def start(
        *, tls: TlsFiles | None = None, api_keys: tuple[str, ...] = (), **settings: Any
    ) -> AsyncIterator[Opened]:
        verify = ssl.create_default_context(cafile=tls.cert and settings.pop("ca")) if tls else True
        door = HttpDoor(
            HttpSettings(**{"listen": LOOPBACK, **settings}),
            data_dir=tmp_path,
            tls=tls,
            api_keys=api_keys,
        )
        gateway = Gateway([], Store(f"sqlite:///{tmp_path / 'gateway.db'}"))
        await gateway.start()
        try:
            address = await door.start(gateway)
            scheme = "https" if tls else "http"
            async with httpx.AsyncClient(
                base_url=f"{scheme}://{address}", verify=verify, trust_env=False
            ) as client:
                yield Opened(door, address.host, address.port, client)
        finally:
            await door.stop(0)
            await gateway.close(0)

    return start


async def test_tls_is_served(open_door: Any, certificates: Any) -> None:
    files = TlsFiles(certificates.cert, certificates.key)

    async with open_door(tls=files, ca=certificates.ca) as opened:
        assert (await opened.client.get("/api/v1/healthz")).status_code == 200
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(trust_env=False) as stranger:
                await stranger.get(f"https://127.0.0.1:{opened.port}/api/v1/healthz")


async def test_clients_without_a_certificate_stay_out_where_one_is_asked_for(
    open_door: Any, certificates: Any
) -> None:
    files = TlsFiles(certificates.cert, certificates.key, certificates.ca)

    async with open_door(tls=files, ca=certificates.ca) as opened:
        with pytest.raises(httpx.TransportError):
            await opened.client.get("/api/v1/healthz")
        context = ssl.create_default_context(cafile=certificates.ca)
        context.load_cert_chain(certificates.client_cert, certificates.client_key)
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            answer = await client.get(f"https://127.0.0.1:{opened.port}/api/v1/healthz")
    assert answer.status_code == 200


def test_what_cannot_work_is_found_out_before_the_start(tmp_path: Path, certificates: Any) -> None:
    def door(
        *, tls: TlsFiles | None = None, api_keys: tuple[str, ...] = (), **settings: Any
    ) -> Any:
        return HttpDoor(HttpSettings(**settings), data_dir=tmp_path, tls=tls, api_keys=api_keys)

    files = TlsFiles(certificates.cert, certificates.key)
    with pytest.raises(ListenError, match="no HOST:PORT"):
        door(listen="7701")
    for half in ({}, {"tls": files}, {"api_keys": ("key",)}):
        with pytest.raises(ListenError, match="can be reached from other machines"):
            door(listen="0.0.0.0:0", **half)
    door(listen="0.0.0.0:0", tls=files, api_keys=("key",))
    door(listen="0.0.0.0:0", allow_insecure_bind=True)
    with pytest.raises(ListenError, match="no URL"):
        door(listen=LOOPBACK, public_url="gateway.example")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(
            ListenError, match=r"in use; another gateway\? try --http 127\.0\.0\.1:0"
        ):
            door(listen=taken)


async def test_localhost_is_served_on_all_its_addresses(open_door: Any) -> None:
    async with open_door(listen="localhost:0") as opened:
        found = await asyncio.get_running_loop().getaddrinfo(
            "localhost", opened.port, type=socket.SOCK_STREAM
        )
        for _, _, _, _, sockaddr in found:
            _, writer = await asyncio.open_connection(sockaddr[0], opened.port)
            writer.close()
            await writer.wait_closed()


async def test_bodies_are_bounded_as_sent_and_as_unpacked(open_door: Any) -> None:
    async with open_door(max_body_bytes=1000) as opened:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 100

        url = "/api/v1/create_session"
        zstd = {"content-encoding": "zstd"}
        bomb = zstandard.compress(b"0" * 10_000_000)
        assert len(bomb) < 1000
        for sent in (
            {"content": b"x" * 1001},
            {"content": pieces()},
            {"content": bomb, "headers": zstd},
            {"content": zstandard.compress(b"{}") + bomb, "headers": zstd},
        ):
            answer = await opened.client.post(url, **sent)

            assert answer.status_code == 413
            assert answer.json()["reason"] == "TOO_LARGE"
        fits = await opened.client.post(url, content=zstandard.compress(b"{}"), headers=zstd)
        garbled = await opened.client.post(url, content=b"{}", headers=zstd)
        unknown = await opened.client.post(url, content=b"{}", headers={"content-encoding": "br"})

    assert fits.status_code == 200
    assert (garbled.status_code, unknown.status_code) == (400, 400)
    assert "no zstd" in garbled.json()["detail"]
    assert "must be 'zstd'" in unknown.json()["detail"]


async def test_heads_are_bounded_in_size_and_time(open_door: Any) -> None:
    async with open_door(head_timeout=0.2) as opened:
        reader, writer = await opened.raw()
        writer.write(b"GET /api/v1/healthz HTTP/1.1\r\nhost: x\r\nx-long: ")
        writer.write(b"y" * (MAX_HEAD_BYTES + 1))
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        writer.close()

        for sent in (b"", b"GET /api/v1/healthz HTTP/1.1\r\n"):
            reader, writer = await opened.raw()
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


async def test_a_body_that_stops_coming_is_given_up(open_door: Any) -> None:
    async with open_door(head_timeout=0.2) as opened:
        reader, writer = await opened.raw()
        writer.write(
            b"POST /api/v1/create_session HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
        )

        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)

        assert head.startswith(b"HTTP/1.1 504")
        writer.close()


async def test_connections_are_kept_and_answers_tell_their_request(open_door: Any) -> None:
    async with open_door() as opened:
        reader, writer = await opened.raw()
        for count in range(3):
            writer.write(
                b"GET /api/v1/healthz HTTP/1.1\r\nhost: x\r\nx-request-id: mine-%d\r\n\r\n" % count
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert b"x-request-id: mine-%d\r\n" % count in head
            assert b"date: " in head
            assert await reader.readexactly(15) == b'{"status":"ok"}'
        writer.close()
        await writer.wait_closed()


async def test_no_http_is_answered_and_the_door_goes_on(open_door: Any) -> None:
    async with open_door() as opened:
        reader, writer = await opened.raw()
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()

        assert (await opened.client.get("/api/v1/healthz")).status_code == 200


async def test_the_path_of_the_public_url_is_understood_or_left_out(open_door: Any) -> None:
    async with open_door(public_url="https://gateway.example/services/tinker/") as opened:
        for path in ("/services/tinker/api/v1/healthz", "/api/v1/healthz"):
            assert (await opened.client.get(path)).status_code == 200
        assert (await opened.client.get("/other/api/v1/healthz")).status_code == 404


async def test_the_log_tells_calls_but_no_queries_and_no_keys(
    open_door: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tinkergate.request")
    async with open_door(api_keys=("tml-right",)) as opened:
        headers = {"x-api-key": "tml-right"}
        await opened.client.get("/api/v1/nowhere?signature=secret", headers=headers)
        await opened.client.post("/api/v1/create_session", headers={"x-api-key": "tml-wrong"})
        await opened.client.post("/api/v1/create_session", headers=headers, content=b"{}")
        await opened.client.post("/api/v1/telemetry", headers=headers, content=b"{}")

    told = [record.facts for record in caplog.records]  # type: ignore[attr-defined]
    assert [(facts["method"], facts["code"]) for facts in told] == [
        ("GET /api/v1/nowhere", 404),
        ("POST /api/v1/create_session", 401),
        ("POST /api/v1/create_session", 200),
    ]
    assert told[1]["reason"] == "UNAUTHENTICATED"
    assert (told[2]["request_bytes"], told[2]["response_bytes"] > 0) == (2, True)
    assert "secret" not in str(told)
    assert "tml-" not in str(told)


async def test_a_fault_of_ours_is_told_by_an_id_alone(
    open_door: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr("tinkergate.core.sessions.Sessions.create", broken)
    async with open_door() as opened:
        answer = await opened.client.post("/api/v1/create_session", json={})

    assert answer.status_code == 500
    assert "secret" not in answer.text
    [record] = [r for r in caplog.records if r.name == "tinkergate.request"]
    assert record.facts["error_id"] in answer.json()["detail"]  # type: ignore[attr-defined]
    assert record.exc_info


async def test_at_the_end_running_calls_are_answered_and_idle_connections_closed(
    open_door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    original = Gateway.capabilities

    async def slow(self: Gateway) -> Any:
        begun.set()
        await go_on.wait()
        return await original(self)

    monkeypatch.setattr(Gateway, "capabilities", slow)
    async with open_door() as opened:
        idle, idle_writer = await opened.raw()
        url = "/api/v1/get_server_capabilities"
        call = asyncio.create_task(opened.client.get(url))
        await begun.wait()
        stop = asyncio.create_task(opened.door.stop(10))
        assert await asyncio.wait_for(idle.read(), 5) == b""
        idle_writer.close()
        with pytest.raises(ConnectionError):
            await opened.raw()
        assert not stop.done()
        go_on.set()

        assert (await call).status_code == 200
        await asyncio.wait_for(stop, 5)


async def test_calls_that_outlast_the_grace_are_told_to_come_again(
    open_door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def endless(self: Gateway) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Gateway, "capabilities", endless)
    async with open_door() as opened:
        call = asyncio.create_task(opened.client.get("/api/v1/get_server_capabilities"))
        await begun.wait()
        await opened.door.stop(0.05)

        answer = await call
    assert answer.status_code == 503
    assert answer.json()["reason"] == "SHUTTING_DOWN"
    assert answer.headers["retry-after"] == "1"


async def test_more_connections_than_allowed_are_refused(open_door: Any) -> None:
    async with open_door(max_connections=2) as opened:
        held = [await opened.raw() for _ in range(2)]
        await asyncio.sleep(0.05)

        answer = await opened.client.get("/api/v1/healthz")

        assert answer.status_code == 503
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
