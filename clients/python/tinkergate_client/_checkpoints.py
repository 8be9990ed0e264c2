"""The checkpoints that a gateway keeps."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from tinkergate import v1
from tinkergate_client._checkpoint_downloads import (
    Downloaded,
    DownloadProgress,
    Listed,
    download_archive,
    download_files,
)
from tinkergate_client._checkpoint_records import (
    ArchiveUrl,
    Checkpoint,
    CheckpointFile,
    read_archive_url,
    read_checkpoint,
    read_file,
)
from tinkergate_client._connection import Connection
from tinkergate_client._errors import error_from_call
from tinkergate_client._futures import OperationFuture
from tinkergate_client._listing import pages

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_PIECE_BYTES = 1024 * 1024


class Checkpoints:
    """Looks after checkpoints. All methods raise TinkergateError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = connection.checkpoints

    def list(self, model_id: str = "") -> Iterator[Checkpoint]:
        """The checkpoints of a model, or all, newest first."""
        request = v1.ListCheckpointsRequest(model_id=model_id)
        for page in pages(self._connection, self._stub.ListCheckpoints, request):
            yield from map(read_checkpoint, page.checkpoints)

    def get(self, path: str) -> Checkpoint:
        """The checkpoint of that path."""
        request = v1.GetCheckpointRequest(path=path)
        return read_checkpoint(self._connection.call(self._stub.GetCheckpoint, request).checkpoint)

    def delete(self, path: str) -> None:
        """Remove a checkpoint for good. Samplers made from it go on."""
        self._connection.call(self._stub.DeleteCheckpoint, v1.DeleteCheckpointRequest(path=path))

    def publish(self, path: str) -> Checkpoint:
        """Mark a checkpoint as one that everybody may read. Raises Conflict if it is marked
        already, which may also be by this call, if its first answer was lost."""
        request = v1.PublishCheckpointRequest(path=path)
        return read_checkpoint(
            self._connection.call(self._stub.PublishCheckpoint, request).checkpoint
        )

    def unpublish(self, path: str) -> Checkpoint:
        """Take the mark away. Raises Conflict if there is none, as `publish` does."""
        request = v1.UnpublishCheckpointRequest(path=path)
        return read_checkpoint(
            self._connection.call(self._stub.UnpublishCheckpoint, request).checkpoint
        )

    def set_ttl(self, path: str, ttl: timedelta | None) -> Checkpoint:
        """Have a checkpoint removed so long from now; never if `ttl` is None."""
        request = v1.SetCheckpointTtlRequest(path=path, ttl=duration(ttl))
        return read_checkpoint(
            self._connection.call(self._stub.SetCheckpointTtl, request).checkpoint
        )

    def copy(
        self,
        path: str,
        *,
        session_id: str = "",
        model_seq_id: int | None = None,
        ttl: timedelta | None = None,
    ) -> Checkpoint:
        """Make a checkpoint of the same weights, which outlives the original, under a training run
        that cannot be trained on.

        Args:
            path: Of the original.
            session_id: The session that is to own the copy's training run; empty gives it one of
                its own. `Session.copy_checkpoint` does this and counts.
            model_seq_id: The run's number in the session. With it a repeat makes no second copy;
                without, a call whose answer is lost is not tried again.
            ttl: How long the copy lives; None means until it is deleted.
        """
        request = v1.CopyCheckpointRequest(
            path=path, session_id=session_id, model_seq_id=model_seq_id, ttl=duration(ttl)
        )
        patience = None if request.HasField("model_seq_id") else 0
        answer = self._connection.call(self._stub.CopyCheckpoint, request, patience=patience)
        return read_checkpoint(answer.checkpoint)

    def files(self, path: str) -> Iterator[CheckpointFile]:
        """The files of a checkpoint, by name."""
        request = v1.ListCheckpointFilesRequest(path=path)
        for page in pages(self._connection, self._stub.ListCheckpointFiles, request):
            yield from map(read_file, page.files)

    def download(
        self,
        path: str,
        directory: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Callable[[DownloadProgress], None] | None = None,
    ) -> Sequence[Downloaded]:
        """Bring the files of a checkpoint into `directory`, which is made if it is not there.

        A connection that breaks off is taken up again for as long as the client has patience, and
        so is a download that an earlier run left unfinished. Until all files are there, and are
        what they should be, they wait in the folder .tinkergate.part in the directory.

        Args:
            path: Of the checkpoint.
            directory: Gets the files under their own names.
            overwrite: Whether files that are there may be replaced.
            progress: Called from this thread after every piece.

        Raises FileExistsError, before anything is read, for files that are there already;
        TinkergateError with the reason UNSAFE_FILE_NAME for names that lead elsewhere, with
        CHECKPOINT_MISMATCH if the checkpoint is replaced or removed meanwhile, and with
        CHECKSUM_MISMATCH for bytes that are not what they should be; OSError where the disk fails,
        and BlockingIOError where another program downloads into the same place.
        """
        files = [Listed(file.name, file.size_bytes, file.etag) for file in self.files(path)]
        return download_files(
            self._connection,
            path,
            files,
            Path(directory),
            overwrite=overwrite,
            tell=progress or _say_nothing,
        )

    def download_archive(
        self,
        path: str,
        file: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Callable[[DownloadProgress], None] | None = None,
    ) -> Downloaded:
        """Bring all files of a checkpoint here as one .tar.gz, to `file`. As `download`; until it
        is whole its bytes are in FILE.part, with a note beside it in FILE.part.json."""
        return download_archive(
            self._connection,
            path,
            Path(file),
            overwrite=overwrite,
            tell=progress or _say_nothing,
        )

    def archive_url(self, path: str) -> ArchiveUrl:
        """A link to the archive for a program that speaks HTTP. Raises Unsupported if the gateway
        gives none."""
        request = v1.GetCheckpointArchiveUrlRequest(path=path)
        answer = self._connection.call(self._stub.GetCheckpointArchiveUrl, request)
        return read_archive_url(answer)

    def import_adapter(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str = "",
        base_model: str = "",
        backend: str = "",
        user_metadata: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Take in an adapter that PEFT saved in `folder`, as a checkpoint to train or sample from.

        Args:
            folder: Holds adapter_config.json and adapter_model.safetensors.
            name: The checkpoint's name; the folder's if empty.
            base_model: As the gateway names it; that of adapter_config.json if empty.
            backend: The backend that is to hold it; empty leaves the choice to the gateway.
            user_metadata: Your own notes.

        Raises FileNotFoundError for a folder that lacks a file.
        """
        root = Path(folder)
        files = [root / file for file in ADAPTER_FILES]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing; PEFT's save_pretrained writes it")
        header = v1.ImportHeader(
            base_model=base_model,
            name=name or root.resolve().name,
            backend=backend,
            user_metadata=dict(user_metadata or {}),
        )
        try:
            answer = self._stub.ImportCheckpoint(
                _pieces(header, files), metadata=self._connection.metadata
            )
        except grpc.RpcError as failure:
            raise error_from_call(failure) from None
        return read_checkpoint(answer.checkpoint)

    def interpolate(
        self,
        sources: Mapping[str, float] | Sequence[tuple[str, float]],
        *,
        name: str = "",
        for_training: bool = False,
    ) -> Checkpoint:
        """Make a checkpoint whose change to the base model is the weighted sum of that of others,
        and wait until it is there.

        Args:
            sources: The paths, all on one base model and backend, each with its coefficient.
            name: The new checkpoint's name; empty lets the gateway choose.
            for_training: Whether it is a training checkpoint, without optimizer state, or one for
                samplers.

        Backends that offer it say `checkpoint_interpolation` in their capabilities.
        """
        pairs = list(sources.items() if isinstance(sources, Mapping) else sources)
        kind = v1.CheckpointType.CHECKPOINT_TYPE_SAMPLER
        if for_training:
            kind = v1.CheckpointType.CHECKPOINT_TYPE_TRAINING
        request = v1.InterpolateCheckpointsRequest(
            source_paths=[path for path, _ in pairs],
            coefficients=[coefficient for _, coefficient in pairs],
            output_name=name,
            output_type=kind,
            request_id=str(uuid.uuid4()),
        )
        operation = self._connection.call(self._connection.mint.InterpolateCheckpoints, request)
        accepted: Future[Sequence[v1.Operation]] = Future()
        accepted.set_result([operation])
        made = OperationFuture(
            self._connection,
            accepted,
            lambda operations: operations[0].interpolate_checkpoints.path,
        )
        return self.get(made.result())


def _say_nothing(_: DownloadProgress) -> None:
    pass


def _pieces(header: v1.ImportHeader, files: list[Path]) -> Iterator[v1.ImportCheckpointRequest]:
    yield v1.ImportCheckpointRequest(header=header)
    for file in files:
        with file.open("rb") as stream:
            while data := stream.read(_PIECE_BYTES):
                yield v1.ImportCheckpointRequest(file=v1.FilePiece(name=file.name, data=data))


def duration(ttl: timedelta | None) -> Duration | None:
    """A time to live as a message; None for none."""
    if ttl is None:
        return None
    message = Duration()
    message.FromTimedelta(ttl)
    return message
