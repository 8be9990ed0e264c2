"""Names of files that a gateway tells, made to paths here. A name is never trusted: it leads to a
place under the folder that the caller chose, on every kind of machine, or it is refused."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import grpc

from tinkergate_client._errors import TinkergateError

_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
"""What Windows keeps for itself, and what no name should hold."""
_DEVICES = frozenset(
    [
        "con",
        "prn",
        "aux",
        "nul",
        *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"),
    ]
)
"""What Windows opens in the place of a file, whatever comes after a dot."""
_MAX_PART_BYTES = 255


def places(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """Where under `root` each of the files goes. Raises TinkergateError (UNSAFE_FILE_NAME) for a
    name that leads elsewhere, that some machine takes for something else, or that is the same as
    another's where upper and lower case are; and for one that goes through a link."""
    found: dict[str, Path] = {}
    taken: dict[tuple[str, ...], str] = {}
    for name in names:
        parts = _parts(name)
        folded = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
        for length in range(1, len(folded) + 1):
            other = taken.get(folded[:length])
            if other is not None:
                raise unsafe(name, f"gets into the way of {other!r}")
        if any(key[: len(folded)] == folded for key in taken):
            raise unsafe(name, "is the folder of another file")
        taken[folded] = name
        found[name] = root.joinpath(*parts)
    for name, place in found.items():
        check_way(root, place, name)
    return found


def check_way(root: Path, place: Path, name: str) -> None:
    """Refuse a place whose way from `root` goes through a link, or through what is no folder."""
    for folder in place.parents:
        if folder == root:
            return
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise unsafe(name, f"goes through {folder}, which is no folder")


def unsafe(name: str, why: str) -> TinkergateError:
    """A name that is not to be used as one of a file."""
    return TinkergateError(
        f"the gateway tells of a file {name[:200]!r}, which {why}: nothing was written there",
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="UNSAFE_FILE_NAME",
    )


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    for part in parts:
        if not part or part.startswith("."):
            raise unsafe(name, "is no plain relative path")
        if _NOT_IN_NAMES.search(part) or part.endswith((" ", ".")):
            raise unsafe(name, "is no name that every machine can hold")
        if part.partition(".")[0].rstrip().casefold() in _DEVICES:
            raise unsafe(name, "is the name of a device on Windows")
        if len(part.encode(errors="surrogatepass")) > _MAX_PART_BYTES:
            raise unsafe(name, "is too long")
    return parts
