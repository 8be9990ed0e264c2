"""The files of checkpoints: listed, read in pieces, and packed as one archive."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tinkergate.core.archives import Archive, Member
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
    ListCheckpointFilesRequest,
    ListCheckpointFilesResponse,
)

_FILE_NAME = re.compile(rf"{NAME_PATTERN.pattern}(/{NAME_PATTERN.pattern})*")
"""A relative path that leads nowhere else: no part of it begins with a '.'."""
_MAX_NAME_BYTES = 200


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
    read: Callable[[int], AsyncIterator[bytes]]
    """The bytes from an offset on. Raises GatewayError, PRECONDITION if the checkpoint is replaced
    or removed in the middle."""


class CheckpointFiles:
    """ListCheckpointFiles, and the bytes for the doors that serve them."""

    def __init__(self, router: Router, sessions: Sessions, registry: CheckpointRegistry) -> None:
        self._router = router
        self._sessions = sessions
        self._registry = registry

    async def list(self, request: ListCheckpointFilesRequest) -> ListCheckpointFilesResponse:
        """Answer ListCheckpointFiles. Raises INVALID, NOT_FOUND or UNSUPPORTED."""
        files = await self._files(self._require(request.path))
        chosen, token = page_by_name(files, request.page_size, request.page_token)
        return ListCheckpointFilesResponse(files=chosen, next_page_token=token)

    async def all(self, path: str) -> tuple[Checkpoint, Sequence[CheckpointFile]]:
        """A checkpoint and its files, by name. Raises as `list` does."""
        entry = self._require(path)
        return entry.message, await self._files(entry)

    async def file(self, path: str, name: str) -> Content:
        """One file. Raises as `list` does."""
        entry = self._require(path)
        for file in await self._files(entry):
            if file.name == name:
                return Content(
                    file.size_bytes,
                    _etag(entry, [file]),
                    file.sha256,
                    nanoseconds(entry.message.create_time),
                    partial(self._read, entry, file),
                )
        raise GatewayError(
            Kind.NOT_FOUND,
            ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
            f"checkpoint {path!r} has no file {name[:_MAX_NAME_BYTES]!r}",
        )

    async def archive(self, path: str, marker: str = "") -> Content:
        """All files as one .tar.gz, made while it is read; see `Archive`. If `marker` is given, an
        empty file of that name comes last. Raises as `list` does."""
        entry = self._require(path)
        files = await self._files(entry)
        created = nanoseconds(entry.message.create_time)
        by_name = {file.name: file for file in files}
        members = [Member(file.name, file.size_bytes) for file in files]
        if marker and marker not in by_name:
            members.append(Member(marker, 0))
        archive = Archive(members, created // 1_000_000_000)

        def read(offset: int) -> AsyncIterator[bytes]:
            return archive.read(offset, lambda name: self._read(entry, by_name[name], 0))

        return Content(archive.size, _etag(entry, files), b"", created, read)

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

    async def _read(
        self, entry: CheckpointEntry, file: CheckpointFile, offset: int
    ) -> AsyncIterator[bytes]:
        """The bytes of a file from `offset` on: as many as were said, of that checkpoint."""
        path, left = entry.message.path, file.size_bytes - offset
        backend = self._router.backend(entry.message.backend)
        async for piece in backend.read_checkpoint_file(path, file.name, offset):
            if self._registry.find(path) is not entry:
                raise _changed(entry)
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise _odd(entry, f"{file.name!r} has not the {file.size_bytes} bytes that were said")


def _etag(entry: CheckpointEntry, files: Sequence[CheckpointFile]) -> str:
    """A checkpoint never changes: another one under the same path has another number and another
    time."""
    facts = [entry.message.path, entry.number, nanoseconds(entry.message.create_time)]
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
