"""What is read of a checkpoint: its files, and all of them as one archive."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tinkergate.core.archives import Stretch
from tinkergate.errors import GatewayError, Kind, invalid_field
from tinkergate.v1 import Checkpoint, ErrorReason, ReadHeader


class Read(Protocol):
    """How content is read."""

    def __call__(self, offset: int, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` to before `end`, or to the end of all. Close the iterator
        (`aclosing`) where it may not be read through. Raises GatewayError: CHECKPOINT_MISMATCH if
        the checkpoint is replaced or removed in the middle, SHUTTING_DOWN if the gateway stops."""


class ReadStretches(Protocol):
    """How an archive is read."""

    def __call__(
        self, offset: int, end: int | None = None, checksum: int | None = None
    ) -> AsyncGenerator[Stretch, None]:
        """As `Read`. `checksum` is that of the stretch that ended at `offset`, if the caller knows
        it."""


@dataclass(frozen=True)
class Content:
    """Bytes of a known number that can be read from any offset, as often as one likes."""

    size: int
    etag: str
    """Another one for other bytes: tells a caller who goes on reading whether they are the same."""
    sha256: bytes
    """Of all bytes; empty if it is not known."""
    create_time: int
    """When the checkpoint was saved, in nanoseconds since 1970."""
    read: Read

    def check(self, offset: int, expected_etag: str) -> None:
        """Refuse to go on reading where there is nothing, or what is not what was read before.
        Raises INVALID or CHECKPOINT_MISMATCH."""
        if expected_etag and expected_etag != self.etag:
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH,
                f"what is to be read has the etag {self.etag!r} now, not "
                f"{expected_etag[:100]!r}: the checkpoint was replaced; begin anew",
            )
        if not 0 <= offset <= self.size:
            raise invalid_field("offset", f"is {offset}; must be from 0 to the {self.size} bytes")

    def header(self) -> ReadHeader:
        """What readers are told before the bytes."""
        return ReadHeader(size_bytes=self.size, etag=self.etag, sha256=self.sha256)


@dataclass(frozen=True)
class ArchiveContent(Content):
    """An archive, made while it is read; see `Archive`."""

    stretches: ReadStretches


class Link(Protocol):
    """What leads to a file over HTTP, for a while."""

    @property
    def url(self) -> str:
        """Whoever has it may read."""

    @property
    def expires(self) -> datetime:
        """When it ends."""


class CheckpointLinks(Protocol):
    """Makes links to checkpoints."""

    def archive(self, checkpoint: Checkpoint) -> Link:
        """To the archive."""

    def file(self, checkpoint: Checkpoint, name: str) -> Link:
        """To one file."""


async def data_of(stretches: AsyncGenerator[Stretch, None]) -> AsyncGenerator[bytes, None]:
    """The bytes alone."""
    async with aclosing(stretches):
        async for stretch in stretches:
            yield stretch.data
