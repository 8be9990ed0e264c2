"""Folders that are there whole or not at all, whenever the process is killed.

A folder is written as a hidden sibling of its target, flushed to the disk, and renamed. Hidden
siblings that a killed process left behind are recognised by their names and removed by `sweep`.
A running writer holds a lock on its sibling, so that a sweep in another process leaves it alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16})\.(?P<stage>partial|replaced)")


class AlreadyThereError(Exception):
    """There is something where a folder was to be made."""


@contextmanager
def writing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `target` when the block ends, and is removed if
    it raises.

    With `overwrite` a folder that is there is replaced; killed in the middle, the old one is back
    after the next `sweep`, if not at once. Without it AlreadyThereError is raised if `target`
    is there at the start or at the end. Raises OSError.
    """
    if target.exists() and not overwrite:
        raise AlreadyThereError(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    partial = _sibling(target, token, "partial")
    partial.mkdir()
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield partial
            flush(partial)
            _put_in_place(partial, target, token, overwrite=overwrite)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def sweep(parent: Path) -> list[Path]:
    """Remove what killed writers left in `parent`, after putting back what they had moved aside
    to replace. Answers what was removed or put back."""
    if not parent.is_dir():
        return []
    found = [(path, _LEFTOVER.fullmatch(path.name)) for path in sorted(parent.iterdir())]
    leftovers = [(path, match) for path, match in found if match is not None]
    swept = []
    busy = {match["token"] for path, match in leftovers if _is_locked(path)}
    for path, match in leftovers:
        target = parent / match["name"]
        if match["token"] in busy:
            continue
        if match["stage"] == "replaced" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)
        swept.append(path)
    return swept


def remove(target: Path) -> None:
    """Remove a folder so that it is never there in part. A folder that is not there is no error."""
    aside = _sibling(target, secrets.token_hex(8), "partial")
    try:
        target.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def flush(folder: Path) -> None:
    """Flush a folder and all that is in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _flush_one(path)


def _put_in_place(partial: Path, target: Path, token: str, *, overwrite: bool) -> None:
    aside = _sibling(target, token, "replaced")
    if overwrite and target.exists():
        target.rename(aside)
    try:
        partial.rename(target)
    except OSError as error:
        if aside.exists():
            aside.rename(target)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise AlreadyThereError(target) from error
        raise
    _flush_one(target.parent)
    if aside.exists():
        shutil.rmtree(aside, ignore_errors=True)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path, token: str, stage: str) -> Path:
    return target.with_name(f".{target.name}.{token}.{stage}")


def _is_locked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
