"""Checkpoints brought to this machine: read on where a connection, or an earlier run, broke off,
checked, and put in their place when they are whole."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

from tinkergate import v1
from tinkergate_client._calls import Patience, client_closed
from tinkergate_client._checkpoint_names import check_way, places
from tinkergate_client._checkpoint_parts import Part, read_note
from tinkergate_client._connection import Connection
from tinkergate_client._errors import GatewayUnreachable, TinkergateError, error_from_call

STAGING: Final = ".tinkergate.part"
"""The folder in which files wait until all of them are there. Its files have numbers for names."""

_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""How gRPC and proxies tell of a stream that broke off. Reading may be tried again whatever it
was."""


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is."""

    name: str
    """The file that is being read; empty for an archive."""
    done_bytes: int
    """Of all files together, those of earlier runs among them."""
    total_bytes: int


@dataclass(frozen=True)
class Downloaded:
    """A file that is here now."""

    name: str
    """As the checkpoint has it; empty for an archive."""
    path: Path
    size_bytes: int
    sha256: str
    """Of what is here, in hexadecimal."""
    verified: bool
    """Whether that is known to be right: by the SHA-256 that the backend says, or by the checksum
    at the end of an archive."""


@dataclass(frozen=True)
class Listed:
    """A file as the gateway lists it."""

    name: str
    size_bytes: int
    etag: str


Tell = Callable[[DownloadProgress], None]
Open = Callable[[Part], Any]
"""Begins to read where a part ends. Answers a call of the kind that streams its answers."""


def download_archive(
    connection: Connection, path: str, file: Path, *, overwrite: bool, tell: Tell
) -> Downloaded:
    """Bring the archive of a checkpoint here; see `Checkpoints.download_archive`."""
    _refuse_if_there([file], overwrite=overwrite)
    file.parent.mkdir(parents=True, exist_ok=True)

    def begin(part: Part) -> Any:
        request = v1.ReadCheckpointArchiveRequest(
            path=path,
            offset=part.offset,
            expected_etag=part.etag,
            contents_crc32=part.checksum if part.offset else None,
        )
        return connection.checkpoints.ReadCheckpointArchive(request, metadata=connection.metadata)

    with Part(file.with_name(f"{file.name}.part"), is_archive=True) as part:

        def told() -> None:
            tell(DownloadProgress("", part.offset, part.size or 0))

        _fetch(connection, part, begin, told)
        sha256, verified = part.finish()
        _refuse_if_there([file], overwrite=overwrite)
        part.put(file)
        return Downloaded("", file, part.offset, sha256, verified)


def download_files(
    connection: Connection,
    path: str,
    files: Sequence[Listed],
    directory: Path,
    *,
    overwrite: bool,
    tell: Tell,
) -> list[Downloaded]:
    """Bring the files of a checkpoint here; see `Checkpoints.download`."""
    targets = places(directory, [file.name for file in files])
    staging = directory / STAGING
    parts = [staging / f"{number}.part" for number in range(len(files))]
    # An earlier run may have ended while it put files in their place.
    moved = {
        file.name: done
        for file, part in zip(files, parts, strict=True)
        if (done := _moved(part, file, targets[file.name])) is not None
    }
    _refuse_if_there(
        [place for name, place in targets.items() if name not in moved], overwrite=overwrite
    )
    check_way(directory, staging / "0", STAGING)
    staging.mkdir(parents=True, exist_ok=True)
    total = sum(file.size_bytes for file in files)
    results = []
    before = 0
    for file, data in zip(files, parts, strict=True):
        done = moved.get(file.name)
        if done is None:
            told = partial(_tell_of_all, tell, file.name, before, total)
            done = _one(connection, path, file, data, told)
        results.append(done)
        before += file.size_bytes
    for file, data in zip(files, parts, strict=True):
        target = targets[file.name]
        if file.name not in moved:
            check_way(directory, target, file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            data.replace(target)
    shutil.rmtree(staging)
    return [replace(done, path=targets[done.name]) for done in results]


def _one(
    connection: Connection,
    path: str,
    file: Listed,
    data: Path,
    tell: Callable[[int], None],
) -> Downloaded:
    """Read one file into the staging folder."""

    def begin(part: Part) -> Any:
        request = v1.ReadCheckpointFileRequest(
            path=path, name=file.name, offset=part.offset, expected_etag=part.etag or file.etag
        )
        return connection.checkpoints.ReadCheckpointFile(request, metadata=connection.metadata)

    with Part(data) as part:
        _fetch(connection, part, begin, lambda: tell(part.offset))
        sha256, verified = part.finish()
        return Downloaded(file.name, data, part.offset, sha256, verified)


def _tell_of_all(tell: Tell, name: str, before: int, total: int, here: int) -> None:
    """Tell of one file, of which so much is here, as a part of all."""
    tell(DownloadProgress(name, before + here, total))


def _moved(data: Path, file: Listed, target: Path) -> Downloaded | None:
    """A file that an earlier run has read to its end, checked, and put in its place; None if it
    has not, or the file is another now."""
    noted = read_note(data.with_name(f"{data.name}.json"))
    verified, sha256 = noted.get("verified"), noted.get("sha256")
    if data.exists() or not target.is_file() or target.stat().st_size != file.size_bytes:
        return None
    if noted.get("etag") != file.etag or not isinstance(verified, bool):
        return None
    return Downloaded(file.name, target, file.size_bytes, str(sha256), verified)


def _refuse_if_there(targets: Iterable[Path], *, overwrite: bool) -> None:
    for target in targets:
        if not overwrite and os.path.lexists(target):
            raise FileExistsError(f"{target} is there already; say so if it is to be overwritten")


def _fetch(connection: Connection, part: Part, begin: Open, tell: Callable[[], None]) -> None:
    """Read the rest of a part, anew and anew until all is there. What an earlier run left of other
    contents is thrown away. Raises TinkergateError."""
    waiting = Patience(connection.patience)
    while True:
        try:
            call = begin(part)
        except ValueError:  # what grpc raises on a closed channel
            raise client_closed() from None
        try:
            for message in call:
                if message.WhichOneof("part") == "header":
                    part.begin(message.header)
                else:
                    part.write(message.data, getattr(message, "contents_crc32", None))
                    waiting = Patience(connection.patience)
                tell()
            if part.is_whole:
                return
            error: TinkergateError = GatewayUnreachable("the stream ended before its end")
        except grpc.RpcError as failure:
            error = error_from_call(failure)
            if not error.reason and error.code in _BROKEN:
                error = GatewayUnreachable(error.message, code=error.code)
        finally:
            call.cancel()
        if error.reason == "CHECKPOINT_MISMATCH" and part.is_resumed:
            part.restart()
            continue
        delay = waiting.delay_after(error)
        if delay is None:
            raise error
        time.sleep(delay)
