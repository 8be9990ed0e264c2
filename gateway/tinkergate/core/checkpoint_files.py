"""The files of checkpoints: listed, read in pieces, and packed as one archive."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from tinkergate.core.admission import Admission
from tinkergate.core.archives import Archive, Checksums, Member, Stretch
from tinkergate.core.checkpoint_contents import ArchiveContent, CheckpointLinks, Content, data_of
from tinkergate.core.checkpoint_registry import CheckpointEntry, CheckpointRegistry
from tinkergate.core.clock import nanoseconds
from tinkergate.core.ids import NAME_PATTERN, session_of
from tinkergate.core.paging import page_by_name
from tinkergate.core.router import Router
from tinkergate.core.sessions import Sessions
from tinkergate.core.validation.names import parse_checkpoint_path
from tinkergate.errors import GatewayError, Kind, unsupported
from tinkergate.v1 import (
    Checkpoint,
    CheckpointFile,
    ErrorReason,
    GetCheckpointArchiveUrlRequest,
    GetCheckpointArchiveUrlResponse,
    ListCheckpointFilesRequest,
    ListCheckpointFilesResponse,
)

__all__ = ["MARKER", "CheckpointFiles", "Content"]

MARKER: Final = "checkpoint_complete"
"""An empty file at the end of an archive, by which some tools tell a whole one."""
PIECE_BYTES: Final = 1 << 18
"""The most bytes of a file that are handed out at once."""
FIRST_PIECE_BYTES: Final = 1 << 14
"""How many are handed out first; then twice as many each time. So a caller on a line that breaks
all the time, who loses the piece that was on its way, gets on nevertheless."""

_FILE_NAME = re.compile(rf"{NAME_PATTERN.pattern}(/{NAME_PATTERN.pattern})*")
"""A relative path that leads nowhere else: no part of it begins with a '.'."""
_MAX_NAME_BYTES = 200

Piece = TypeVar("Piece", bytes, Stretch)


class CheckpointFiles:
    """The RPCs about the files of checkpoints, and the bytes for the doors that serve them."""

    def __init__(
        self,
        admission: Admission,
        router: Router,
        sessions: Sessions,
        registry: CheckpointRegistry,
    ) -> None:
        self._admission = admission
        self._router = router
        self._sessions = sessions
        self._registry = registry
        self._checksums = Checksums()
        self._readers = 0
        self._no_readers = asyncio.Event()
        self._no_readers.set()
        self._ended: GatewayError | None = None
        self.links: CheckpointLinks | None = None
        """What makes links for callers of other doors; set by the HTTP door, if it is open and
        knows by which address it is reached."""

    async def list(self, request: ListCheckpointFilesRequest) -> ListCheckpointFilesResponse:
        """Answer ListCheckpointFiles. Raises INVALID, NOT_FOUND or UNSUPPORTED."""
        entry = self._require(request.path)
        files = await self._files(entry)
        chosen, token = page_by_name(files, request.page_size, request.page_token)
        told = [self._told(entry, file) for file in chosen]
        return ListCheckpointFilesResponse(files=told, next_page_token=token)

    async def archive_url(
        self, request: GetCheckpointArchiveUrlRequest
    ) -> GetCheckpointArchiveUrlResponse:
        """Answer GetCheckpointArchiveUrl. Raises as `list` does, and UNSUPPORTED without links."""
        archive = await self.archive(request.path)
        if self.links is None:
            raise GatewayError(
                Kind.UNSUPPORTED,
                ErrorReason.ERROR_REASON_UNSUPPORTED,
                "this gateway gives no links: its HTTP door is closed, or it does not know under "
                "which address that is reached (--public-url); ReadCheckpointArchive reads "
                "the archive",
                metadata={"feature": "links to archives"},
            )
        link = self.links.archive(self._registry.require(request.path).message)
        told = GetCheckpointArchiveUrlResponse(
            url=link.url, size_bytes=archive.size, etag=archive.etag
        )
        told.expire_time.FromDatetime(link.expires)
        return told

    async def all(self, path: str) -> tuple[Checkpoint, Sequence[CheckpointFile]]:
        """A checkpoint and its files, by name. Raises as `list` does."""
        entry = self._require(path)
        return entry.message, await self._files(entry)

    async def file(self, path: str, name: str) -> Content:
        """One file. Raises as `list` does, and SHUTTING_DOWN."""
        self._admission.check_open()
        entry = self._require(path)
        for file in await self._files(entry):
            if file.name == name:
                return self._content(entry, file)
        raise GatewayError(
            Kind.NOT_FOUND,
            ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
            f"checkpoint {path!r} has no file {name[:_MAX_NAME_BYTES]!r}",
        )

    async def archive(self, path: str, marker: str = MARKER) -> ArchiveContent:
        """All files as one .tar.gz, made while it is read; see `Archive`. If `marker` is given, an
        empty file of that name comes last. Raises as `file` does."""
        self._admission.check_open()
        entry = self._require(path)
        files = await self._files(entry)
        created = nanoseconds(entry.message.create_time)
        by_name = {file.name: file for file in files}
        members = [Member(file.name, file.size_bytes) for file in files]
        if marker and marker not in by_name:
            members.append(Member(marker, 0))
        archive = Archive(members, created // 1_000_000_000)
        etag = _etag(entry, files, "archive", marker)

        def read_member(name: str, offset: int) -> AsyncGenerator[bytes, None]:
            return self._read(entry, by_name[name], offset)

        def stretches(
            offset: int, end: int | None = None, checksum: int | None = None
        ) -> AsyncGenerator[Stretch, None]:
            marks = self._checksums.of(etag, archive.size)
            reading = archive.read(read_member, offset, end, checksum=checksum, marks=marks)
            return self._followed(reading)

        return ArchiveContent(
            size=archive.size,
            etag=etag,
            sha256=b"",
            create_time=created,
            read=lambda offset, end=None: data_of(stretches(offset, end)),
            stretches=stretches,
        )

    async def idle(self) -> None:
        """Wait until nobody is reading."""
        await self._no_readers.wait()

    def stop_all(self, error: GatewayError) -> None:
        """The gateway stops: end all reading with `error`."""
        self._ended = error

    def _require(self, path: str) -> CheckpointEntry:
        parsed = parse_checkpoint_path("path", path)
        self._sessions.heard(session_of(parsed.model_id))
        return self._registry.require(path)

    async def _files(self, entry: CheckpointEntry) -> Sequence[CheckpointFile]:
        backend = self._router.backend(entry.message.backend)
        if not backend.capabilities().checkpoint_files:
            raise unsupported("reading the files of checkpoints", backend.name)
        files = sorted(
            await backend.checkpoint_files(entry.message.path), key=lambda file: file.name.encode()
        )
        names = {file.name for file in files}
        for file in files:
            if not _FILE_NAME.fullmatch(file.name) or len(file.name) > _MAX_NAME_BYTES:
                raise _odd(entry, f"a file has the name {file.name[:_MAX_NAME_BYTES]!r}")
            if file.size_bytes < 0:
                raise _odd(entry, f"{file.name!r} has {file.size_bytes} bytes")
        if len(names) != len(files):
            raise _odd(entry, "two files have one name")
        return files

    def _told(self, entry: CheckpointEntry, file: CheckpointFile) -> CheckpointFile:
        """A file as callers are told of it."""
        told = CheckpointFile(
            name=file.name,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            etag=_etag(entry, [file]),
        )
        if self.links is not None:
            link = self.links.file(entry.message, file.name)
            told.url = link.url
            told.url_expire_time.FromDatetime(link.expires)
        return told

    def _content(self, entry: CheckpointEntry, file: CheckpointFile) -> Content:
        return Content(
            size=file.size_bytes,
            etag=_etag(entry, [file]),
            sha256=file.sha256,
            create_time=nanoseconds(entry.message.create_time),
            read=lambda offset, end=None: self._followed(
                _until(self._read(entry, file, offset), offset, end)
            ),
        )

    async def _followed(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """What a caller reads: the gateway waits for its end, and can end it."""
        self._readers += 1
        self._no_readers.clear()
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if self._ended is not None:
                        raise self._ended
                    yield piece
        finally:
            self._readers -= 1
            if not self._readers:
                self._no_readers.set()

    async def _read(
        self, entry: CheckpointEntry, file: CheckpointFile, offset: int
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a file from `offset` on: as many as were said, of that checkpoint."""
        path, left = entry.message.path, file.size_bytes - offset
        if not left:
            return
        backend = self._router.backend(entry.message.backend)
        reading = backend.read_checkpoint_file(path, file.name, offset)
        size = FIRST_PIECE_BYTES
        try:
            async with aclosing(reading) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if self._registry.find(path) is not entry:
                        raise _changed(entry)
                    left -= len(piece)
                    if left < 0:
                        break
                    start = 0
                    while start < len(piece):
                        yield piece[start : start + size]
                        start += size
                        size = min(2 * size, PIECE_BYTES)
        except GatewayError as error:
            # A file that is not there any more is no news of its own.
            if self._registry.find(path) is not entry:
                raise _changed(entry) from error
            raise
        if left:
            raise _odd(entry, f"{file.name!r} has not the {file.size_bytes} bytes that were said")


async def _until(
    pieces: AsyncGenerator[bytes, None], offset: int, end: int | None
) -> AsyncGenerator[bytes, None]:
    """Pieces that begin at `offset`, to before `end`."""
    async with aclosing(pieces):
        async for piece in pieces:
            if end is not None and offset + len(piece) >= end:
                yield piece[: end - offset]
                return
            offset += len(piece)
            yield piece


def _etag(entry: CheckpointEntry, files: Sequence[CheckpointFile], *more: str) -> str:
    """A checkpoint never changes: another one under the same path has another number and another
    time."""
    facts = [entry.message.path, entry.number, nanoseconds(entry.message.create_time), *more]
    facts += [part for file in files for part in (file.name, file.size_bytes, file.sha256.hex())]
    return hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()[:32]


def _odd(entry: CheckpointEntry, what: str) -> GatewayError:
    backend = entry.message.backend
    return GatewayError(
        Kind.INTERNAL,
        ErrorReason.ERROR_REASON_INTERNAL,
        f"backend {backend!r} tells what cannot be of checkpoint {entry.message.path!r}: {what}",
        backend=backend,
    )


def _changed(entry: CheckpointEntry) -> GatewayError:
    return GatewayError(
        Kind.PRECONDITION,
        ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH,
        f"checkpoint {entry.message.path!r} was replaced or removed while it was read",
    )
