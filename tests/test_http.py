"""The HTTP client against servers on real sockets that misbehave: what was surely not sent is told
from what may have arrived."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tinkergate.http import Answer, AnswerLost, HttpClient, NotSent

Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + (await reader.readexactly(int(length[0].partition(b":")[2])) if length else b"")


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees a reset."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def answering(text: bytes, *, cut: bool = False) -> Behave:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(text)
        await writer.drain()
        if cut:
            reset(writer)
        writer.close()

    return behave


async def close_after(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.close()


async def reset_after(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    reset(writer)


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await reader.read()
    writer.close()


class Server:
    def __init__(self, behave: Behave) -> None:
        self._behave = behave
        self.requests = 0

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        try:
            await self._behave(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient(connect_timeout=2)
    yield client
    await client.close()


async def post(client: HttpClient, url: str, *, within: float = 5.0, limit: int = 1000) -> Answer:
    return await client.send(
        "POST", url, headers={"x-key": "k"}, content=b"body", within=within, max_bytes=limit
    )


OK = b"HTTP/1.1 200 OK\r\nX-Told: yes\r\n"


async def test_an_answer_is_read_whole(client: HttpClient) -> None:
    body = gzip.compress(b"a" * 900)
    text = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    async with Server(answering(text)) as server:
        answer = await post(client, server.url)
    assert (answer.status, answer.body) == (200, b"a" * 900)
    assert answer.headers["x-told"] == "yes"


async def test_redirects_are_not_followed(client: HttpClient) -> None:
    text = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
    async with Server(answering(text)) as server:
        answer = await post(client, server.url)
        assert (answer.status, answer.headers["location"]) == (302, "/elsewhere")
        assert server.requests == 1


@pytest.mark.parametrize(
    "behave",
    [
        close_after,
        reset_after,
        answering(OK + b"content-length: 100\r\n\r\nhalf"),
        answering(OK + b"content-length: 100\r\n\r\nhalf", cut=True),
        answering(b"\x00\x01 no HTTP at all\r\n\r\n"),
        answering(OK + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc"),
        answering(OK + b"content-encoding: zstd\r\ncontent-length: 3\r\n\r\nabc"),
    ],
)
async def test_an_answer_that_does_not_come_whole_is_lost(
    behave: Behave, client: HttpClient
) -> None:
    async with Server(behave) as server:
        with pytest.raises(AnswerLost):
            await post(client, server.url)
        # Sending again is for the caller to decide.
        assert server.requests == 1


async def test_an_answer_is_waited_for_in_bounds(client: HttpClient) -> None:
    async with Server(never_answer) as server:
        with pytest.raises(AnswerLost, match=r"within 0.2 s"):
            await post(client, server.url, within=0.2)


async def test_an_answer_that_is_too_large_decompressed_is_lost(client: HttpClient) -> None:
    body = gzip.compress(b"a" * 1_000_000)
    text = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    async with Server(answering(text)) as server:
        with pytest.raises(AnswerLost, match="larger than 1000 bytes"):
            await post(client, server.url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "https://127.0.0.1:1/", "http://nowhere.invalid/"]
)
async def test_without_a_connection_nothing_was_sent(url: str, client: HttpClient) -> None:
    with pytest.raises(NotSent) as raised:
        await post(client, url)
    assert url not in str(raised.value)


async def test_a_connection_that_went_stale_is_made_anew(client: HttpClient) -> None:
    text = OK + b"content-length: 2\r\n\r\nok"
    async with Server(answering(text)) as server:
        for _ in range(3):
            assert (await post(client, server.url)).body == b"ok"
            await asyncio.sleep(0.05)
        assert server.requests == 3


async def test_an_error_keeps_the_secrets_of_a_signed_url(client: HttpClient) -> None:
    async with Server(reset_after) as server:
        with pytest.raises(AnswerLost) as raised:
            await post(client, f"{server.url}file(1)?signature=secret")
    assert "secret" not in str(raised.value)


async def test_a_stream_is_read_piece_by_piece(client: HttpClient) -> None:
    data = bytes(range(256)) * 4000
    text = OK + b"content-length: %d\r\n\r\n" % len(data) + data
    async with (
        Server(answering(text)) as server,
        client.stream("GET", server.url, headers={}) as answer,
    ):
        pieces = [piece async for piece in answer.pieces()]
    assert len(pieces) > 1
    assert b"".join(pieces) == data


def test_certificates_that_are_none_are_told() -> None:
    with pytest.raises(OSError, match="no-such-file"):
        HttpClient(connect_timeout=1, ca_file=Path("/no-such-file"))
