"""The checkpoints on disk: taken in, copied, listed, read and removed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from tinkergate.backends.base import SavedCheckpoint
from tinkergate.backends.local import folders
from tinkergate.backends.local.folders import CheckpointFolders
from tinkergate.engine import checkpoint
from tinkergate.engine.bases import LoadedBase
from tinkergate.engine.engine import Engine
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import Checkpoint, CheckpointFile, ErrorReason, InterpolateCheckpointsRequest

PIECE_BYTES = 1 << 20
"""How much of a file is read at once."""


class StoredCheckpoints:
    """What `LocalBackend` does with checkpoints whatever model they are of. For the event loop;
    the disk is read and written beside it. All raise GatewayError."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self._engine = engine
        self._folders = CheckpointFolders(root)

    async def start(self) -> None:
        """Clear up after a killed process."""
        await asyncio.to_thread(self._folders.sweep)

    def folder(self, path: str) -> Path:
        """Where the checkpoint of a canonical path lies or is to lie. Raises INVALID."""
        return self._folders.folder(folders.parse(path))

    async def list(self) -> Sequence[Checkpoint]:
        """What is there."""
        return await asyncio.to_thread(self._folders.list)

    async def remove(self, path: str) -> None:
        """Remove one for good. One that is not there is no error."""
        await asyncio.to_thread(self._folders.remove, folders.parse(path))

    async def take_in(
        self, loaded: LoadedBase, described: Checkpoint, files: Mapping[str, Path]
    ) -> SavedCheckpoint:
        """Make `described.path` of a PEFT adapter's files, by their names."""
        target = self.folder(described.path)
        metadata = folders.notes_of(described)
        with tempfile.TemporaryDirectory(prefix="tinkergate-import-") as folder:
            for name, file in files.items():
                (Path(folder) / Path(name).name).symlink_to(file.resolve())
            handle = self._engine.import_adapter(loaded, Path(folder), target, metadata)
            # The folder must stay until it is read, whatever becomes of the caller.
            waiting = asyncio.ensure_future(asyncio.wrap_future(handle.future))
            try:
                size = await asyncio.shield(waiting)
            except asyncio.CancelledError:
                await asyncio.wait([waiting])
                raise
        made = await asyncio.to_thread(checkpoint.summarize, target)
        lora = folders.lora_config(made.metadata)
        return SavedCheckpoint(size, has_optimizer=False, lora_config=lora)

    async def copy(self, source: str, described: Checkpoint) -> SavedCheckpoint:
        """Make `described.path` of the same weights, and the same optimizer state, as `source`.
        The disk holds them once."""
        made = await asyncio.to_thread(
            checkpoint.copy,
            self.folder(source),
            self.folder(described.path),
            folders.notes_of(described),
        )
        return SavedCheckpoint(made.size_bytes, made.has_optimizer)

    async def interpolate(
        self, loaded: LoadedBase, request: InterpolateCheckpointsRequest, described: Checkpoint
    ) -> SavedCheckpoint:
        """Make `described.path` of the weighted sum of others on one base model."""
        handle = self._engine.interpolate(
            loaded,
            [self.folder(path) for path in request.source_paths],
            request.coefficients,
            self.folder(described.path),
            folders.notes_of(described),
        )
        size = await asyncio.wrap_future(handle.future)
        made = await asyncio.to_thread(checkpoint.summarize, self.folder(described.path))
        lora = folders.lora_config(made.metadata)
        return SavedCheckpoint(size, has_optimizer=False, lora_config=lora)

    async def files(self, path: str) -> Sequence[CheckpointFile]:
        """The files of one, by name."""
        found = await asyncio.to_thread(checkpoint.files, self.folder(path))
        return [
            CheckpointFile(name=name, size_bytes=facts.size, sha256=facts.sha256)
            for name, facts in sorted(found.items())
        ]

    async def read(self, path: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of one file from `offset` on. Only files that `files` lists can be read, so a
        name never leads out of the folder."""
        folder = self.folder(path)
        if name not in await asyncio.to_thread(checkpoint.files, folder):
            raise _no_file(path, name)
        try:
            file = await asyncio.to_thread((folder / name).open, "rb")
        except OSError as error:
            raise _unreadable(path, name, error) from error
        with file:
            file.seek(offset)
            while True:
                try:
                    data = await asyncio.to_thread(file.read, PIECE_BYTES)
                except OSError as error:
                    raise _unreadable(path, name, error) from error
                if not data:
                    return
                yield data


def _no_file(path: str, name: str) -> GatewayError:
    return GatewayError(
        Kind.NOT_FOUND,
        ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
        f"checkpoint {path!r} has no file {name[:200]!r}",
    )


def _unreadable(path: str, name: str, error: OSError) -> GatewayError:
    if isinstance(error, FileNotFoundError):
        return _no_file(path, name)
    return GatewayError(
        Kind.UNAVAILABLE,
        ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
        f"{name} of checkpoint {path!r} cannot be read: {error.strerror}",
    )
