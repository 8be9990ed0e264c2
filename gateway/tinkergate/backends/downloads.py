"""Downloads from signed URLs. They are asked for without a key: they are somebody else's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from tinkergate.backends.failures import failure, unreachable
from tinkergate.backends.pauses import Pauses
from tinkergate.errors import GatewayError
from tinkergate.http import AnswerLost, HttpClient, NotSent

READ_TRIES = 5
"""How often in a row a download that broke off is taken up again without getting any further."""
_EXPIRED = frozenset({400, 401, 403, 404, 410})
"""What hosts of files answer to a URL that is too old."""


class Downloads:
    """Reads what URLs hold."""

    def __init__(self, backend: str, client: HttpClient, patience: float) -> None:
        """`patience` is how long trouble is put up with, in seconds."""
        self._backend = backend
        self._client = client
        self._patience = patience

    async def read(
        self,
        url: str,
        operation: str,
        offset: int,
        renew: Callable[[], Awaitable[str]] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """What a URL holds from `offset` on. A download that breaks off is taken up again, unless
        the file is another one meanwhile. `renew` gives another URL where this one is too old:
        as often as it takes, if it gets further in between. Raises GatewayError."""
        pauses = Pauses(self._patience, 0.0)
        tries, etag = 0, ""
        renewed_at = -1
        while True:
            # Places in a file are those of its own bytes, not of compressed ones.
            headers = {"accept-encoding": "identity"}
            if offset:
                headers["range"] = f"bytes={offset}-"
            if offset and etag:
                headers["if-range"] = etag
            try:
                async with self._client.stream("GET", url, headers=headers) as answer:
                    status = answer.status
                    if status in _EXPIRED and renew is not None and offset > renewed_at:
                        url, renewed_at = await renew(), offset
                        continue
                    if status == 416:
                        return
                    if status not in (200, 206):
                        raise unreachable(self._backend, operation, f"was answered {status}")
                    told = answer.headers.get("etag", "")
                    if etag and told != etag:
                        raise self._changed(operation)
                    etag = "" if told.startswith("W/") else told
                    # A server may answer the whole where a part was asked for.
                    skip = offset if status == 200 else 0
                    async with aclosing(answer.pieces()) as pieces:
                        async for piece in pieces:
                            if skip >= len(piece):
                                skip -= len(piece)
                                continue
                            fresh, skip = piece[skip:], 0
                            offset += len(fresh)
                            tries = 0
                            yield fresh
                return
            except (NotSent, AnswerLost) as error:
                tries += 1
                if tries > READ_TRIES or not await pauses.trouble():
                    raise unreachable(self._backend, operation, f"broke off: {error}") from None

    def _changed(self, operation: str) -> GatewayError:
        return failure(self._backend, operation, "broke off, and the file is another one since")
