"""Bodies of requests, read whole and within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import zstandard
from starlette.requests import Request

from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field

THREAD_BYTES = 256 << 10
"""Bodies from this size on are unpacked in a thread, so that the loop goes on meanwhile."""

MAX_WINDOW_BYTES = 128 << 20
"""The largest window that a compressed body may ask for: what decompressing it needs at once."""


async def read_body(request: Request) -> bytes:
    """The body, decompressed if it is zstd. Raises GatewayError: TOO_LARGE for more bytes than
    the door takes, INVALID for an encoding that it does not know or a body that is not of it."""
    limit: int = request.scope["state"]["max_body_bytes"]
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise too_large(int(declared), limit)
    pieces: list[bytes] = []
    size = 0
    stream = request.stream()
    while (piece := await _next_piece(stream, request.scope["state"]["pause_limit"])) is not None:
        size += len(piece)
        if size > limit:
            raise too_large(size, limit)
        pieces.append(piece)
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    match encoding:
        case "identity" | "":
            return body
        case "zstd":
            if size < THREAD_BYTES:
                return decompressed(body, limit)
            return await asyncio.to_thread(decompressed, body, limit)
    raise GatewayError(
        Kind.INVALID,
        ErrorReason.ERROR_REASON_INVALID_FIELD,
        f"content-encoding is {encoding!r}; must be 'zstd' or none",
    )


async def _next_piece(stream: AsyncGenerator[bytes, None], limit: float) -> bytes | None:
    """The next piece of a body, None after the last. Raises GatewayError (DEADLINE) if it does not
    come in time."""
    try:
        async with asyncio.timeout(limit):
            return await anext(stream, None)
    except TimeoutError:
        raise GatewayError(
            Kind.DEADLINE,
            ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
            f"nothing came of the body for {limit:g} s",
        ) from None


def decompressed(body: bytes, limit: int) -> bytes:
    """What a zstd frame holds, at most `limit` bytes. Raises GatewayError."""
    pieces: list[bytes] = []
    size = 0
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(
            body, read_across_frames=True
        )
        # A little at a time: a small body can claim to be a huge one.
        while piece := reader.read(1 << 20):
            size += len(piece)
            if size > limit:
                raise too_large(size, limit)
            pieces.append(piece)
    except zstandard.ZstdError as error:
        raise invalid_field("body", f"is no zstd: {error}") from None
    return b"".join(pieces)


def too_large(size: int, limit: int) -> GatewayError:
    """A body that is over the bound."""
    return GatewayError(
        Kind.INVALID,
        ErrorReason.ERROR_REASON_TOO_LARGE,
        f"the body has {size} bytes or more; at most {limit} are taken: send less at once",
        metadata={"limit": str(limit)},
    )
