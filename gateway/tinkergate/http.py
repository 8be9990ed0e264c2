"""The one place that builds an HTTP client for the way to another service.

The client is pyqwest's (Rust's reqwest) as it is: httpx's own pool goes through all its
connections whenever one changes, which hundreds of long polls do not forgive. Redirects are not
followed: the credentials of one service are not for another. TLS trusts the system's certificate
authorities; HTTP/2 is spoken where TLS negotiates it. `proxy` goes before the proxies that the
environment names.

Whoever sends work that must not be done twice has to know whether a request that failed can have
arrived. So what goes wrong is told as one of two errors: `NotSent`, where no connection came about
and nothing left this machine, and `AnswerLost` for everything else, a body that was cut short or
cannot be decompressed included.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyqwest

IDLE_CONNECTIONS = 256
"""How many connections to one host are kept open for the next request."""

_URL = re.compile(r"(error sending request )?for url \(\S*\):? ?")


class NotSent(Exception):
    """The request never left this machine."""


class AnswerLost(Exception):
    """The request may have arrived; its answer did not, or not whole."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes


class StreamedAnswer:
    """An answer whose body is still to be read."""

    def __init__(self, response: pyqwest.Response) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {
            name.lower(): value for name, value in response.headers.items()
        }
        """By names in lower case."""

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body, decompressed. Raises AnswerLost."""
        with _told():
            async for piece in self._response.content:
                yield bytes(piece)


class HttpClient:
    """Sends requests to other services."""

    def __init__(
        self, *, connect_timeout: float, ca_file: Path | None = None, proxy: str = ""
    ) -> None:
        """`ca_file` has certificate authorities in PEM to trust beside the system's. Raises OSError
        if it cannot be read, and ValueError if it or `proxy` is no such thing."""
        self._transport = pyqwest.HTTPTransport(
            tls_ca_cert=None if ca_file is None else ca_file.read_bytes(),
            tls_include_system_certs=True,
            proxy=proxy or None,
            connect_timeout=connect_timeout,
            pool_max_idle_per_host=IDLE_CONNECTIONS,
            follow_redirects=False,
            enable_otel=False,
        )

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes = b"",
        within: float,
        max_bytes: int,
    ) -> Answer:
        """Send a request and read the whole answer, in at most `within` seconds. Raises NotSent
        and AnswerLost, the latter also for an answer of more than `max_bytes`, decompressed."""
        parts: list[bytes] = []
        size = 0
        try:
            async with (
                asyncio.timeout(within),
                self.stream(method, url, headers=headers, content=content) as answer,
                aclosing(answer.pieces()) as pieces,
            ):
                async for piece in pieces:
                    size += len(piece)
                    if size > max_bytes:
                        raise AnswerLost(f"the answer is larger than {max_bytes} bytes")
                    parts.append(piece)
        except TimeoutError as error:
            raise AnswerLost(f"no whole answer within {within:g} s") from error
        return Answer(answer.status, answer.headers, b"".join(parts))

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes = b""
    ) -> AsyncIterator[StreamedAnswer]:
        """Send a request, and have its answer to read piece by piece. Sets no bound to the time
        that takes. Raises NotSent and AnswerLost."""
        with _told():
            try:
                request = pyqwest.Request(
                    method, url, pyqwest.Headers(list(headers.items())), content or None
                )
            except ValueError as error:
                raise NotSent(_words(error)) from error
            response = await self._transport.execute(request)
        try:
            yield StreamedAnswer(response)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong on the way, as one of the two errors."""
    try:
        yield
    except ConnectionError as error:
        # Raised while a connection is being made, and then only.
        raise NotSent(_words(error)) from error
    except (
        pyqwest.ReadError,
        pyqwest.WriteError,
        pyqwest.RemoteProtocolError,
        OSError,
        RuntimeError,
    ) as error:
        raise AnswerLost(_words(error)) from error


def _words(error: Exception) -> str:
    """What went wrong, without the URL: signed ones are as good as keys."""
    text = _URL.sub("", str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
