"""Archives of checkpoints: unpacked without trusting what is in them.

Members are kept under numbers of our own, so no name in an archive is ever a path here. Only plain
files are taken, and no more bytes than is allowed.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

MAX_FILES = 10_000
_PIECE = 1 << 20


@dataclass(frozen=True)
class UnpackedFile:
    """One file of an archive."""

    path: Path
    """Where it is here."""
    size: int
    sha256: bytes


def unpack(archive: Path, folder: Path, max_bytes: int) -> dict[str, UnpackedFile]:
    """Unpack a .tar.gz into `folder`. Answers the files by their names; a folder that all of them
    are in is no part of those. Raises ValueError for what is no archive, or holds more than
    `max_bytes` or `MAX_FILES`, a name that leads out of the archive, or a name twice."""
    files: dict[str, UnpackedFile] = {}
    left = max_bytes
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                if not member.isfile():
                    continue
                name = _checked_name(member.name)
                if name in files:
                    raise ValueError(f"has {name!r} twice")
                if member.size > left or len(files) >= MAX_FILES:
                    raise ValueError(f"holds more than {max_bytes} bytes or {MAX_FILES} files")
                left -= member.size
                source = opened.extractfile(member)
                assert source is not None
                files[name] = _write(source, folder / str(len(files)))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"cannot be unpacked: {error}") from None
    return _without_common_folder(files)


def _checked_name(name: str) -> str:
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    if path.is_absolute() or ".." in parts or not parts or "\\" in name or "\0" in name:
        raise ValueError(f"has the name {name!r}, which leads out of it")
    return "/".join(parts)


def _write(source: IO[bytes], path: Path) -> UnpackedFile:
    digest = hashlib.sha256()
    size = 0
    with path.open("xb") as file:
        while piece := source.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    return UnpackedFile(path, size, digest.digest())


def _without_common_folder(files: dict[str, UnpackedFile]) -> dict[str, UnpackedFile]:
    tops = {name.partition("/")[0] for name in files}
    if len(tops) != 1 or any("/" not in name for name in files):
        return files
    return {name.partition("/")[2]: file for name, file in files.items()}
