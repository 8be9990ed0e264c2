"""One gateway a data folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

LOCK_NAME = "gateway.lock"


class DataDirInUseError(Exception):
    """Another running gateway uses the data folder. The text is written for people."""


class DataDirLock:
    """The claim of this process on a data folder, held until `release` or the process's end,
    however it ends: the kernel drops the lock with the file descriptor."""

    def __init__(self, folder: Path) -> None:
        """Claim `folder`, which is made if need be. Raises `DataDirInUseError`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOCK_NAME
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise DataDirInUseError(
                f"another gateway{f' (process {holder})' if holder else ''} is using the data "
                f"folder {folder}; stop it, or choose another folder with --data-dir"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the folder up. Doing so twice is no error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> DataDirLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
