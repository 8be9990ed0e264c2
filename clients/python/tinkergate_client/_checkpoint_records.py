"""What the client tells of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from tinkergate import v1


@dataclass(frozen=True)
class Checkpoint:
    """One saved set of weights."""

    path: str
    """tinker://{model_id}/{kind}/{name}, where the kind is weights, sampler_weights or
    external_weights."""
    type: str
    """"training", "sampler" or "external"."""
    model_id: str
    base_model: str
    lora_rank: int
    size_bytes: int
    created: datetime
    expires: datetime | None
    """When it is removed by itself; None means never."""
    user_metadata: Mapping[str, str]
    backend: str
    public: bool = False
    """Whether it is marked as one that everybody may read."""
    copied_from: str = ""
    """The path of the checkpoint that it is a copy of."""


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint."""

    name: str
    size_bytes: int
    sha256: str
    """Of the contents, in hexadecimal; empty if the backend does not say."""
    etag: str = ""
    """Changes with the contents."""
    url: str = ""
    """A link to the contents for a program that speaks HTTP: whoever has it may read the file.
    Empty if the gateway gives none."""
    url_expires: datetime | None = None
    """When the link ends."""


@dataclass(frozen=True)
class ArchiveUrl:
    """A link to the archive of a checkpoint: whoever has it may read it."""

    url: str
    expires: datetime
    size_bytes: int
    etag: str
    """Changes with the contents."""


def read_checkpoint(checkpoint: v1.Checkpoint) -> Checkpoint:
    """A checkpoint from its message."""
    return Checkpoint(
        path=checkpoint.path,
        type=v1.CheckpointType.Name(checkpoint.type).removeprefix("CHECKPOINT_TYPE_").lower(),
        model_id=checkpoint.model_id,
        base_model=checkpoint.base_model,
        lora_rank=checkpoint.lora_rank,
        size_bytes=checkpoint.size_bytes,
        created=read_time(checkpoint.create_time),
        expires=(read_time(checkpoint.expire_time) if checkpoint.HasField("expire_time") else None),
        user_metadata=dict(checkpoint.user_metadata),
        backend=checkpoint.backend,
        public=checkpoint.public,
        copied_from=checkpoint.copied_from,
    )


def read_file(file: v1.CheckpointFile) -> CheckpointFile:
    """A file from its message."""
    linked = file.HasField("url_expire_time")
    return CheckpointFile(
        name=file.name,
        size_bytes=file.size_bytes,
        sha256=file.sha256.hex(),
        etag=file.etag,
        url=file.url,
        url_expires=read_time(file.url_expire_time) if linked else None,
    )


def read_archive_url(answer: v1.GetCheckpointArchiveUrlResponse) -> ArchiveUrl:
    """A link from its message."""
    return ArchiveUrl(answer.url, read_time(answer.expire_time), answer.size_bytes, answer.etag)


def read_time(timestamp: Timestamp) -> datetime:
    """A time in UTC from its message."""
    return timestamp.ToDatetime(tzinfo=UTC)
