"""Where checkpoints lie: {root}/{model id}/{kind}/{name}, of the kinds weights, sampler_weights and
external_weights.

A model id's folder is the id with everything that a file system may mind escaped, so that ids are
never trusted as paths and can be read back.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from tinkergate.backends.local.convert import lora_from_spec
from tinkergate.engine import checkpoint
from tinkergate.engine.adapters import LoraSpec
from tinkergate.engine.models import BASE_MODEL, LORA
from tinkergate.errors import GatewayError, invalid_field
from tinkergate.v1 import Checkpoint, CheckpointType, LoraConfig, OptimizerConfig

_log = logging.getLogger(__name__)

ADAMW = "adamw"
"""The one optimizer of the engine."""

WEIGHTS = "weights"
SAMPLER_WEIGHTS = "sampler_weights"
EXTERNAL_WEIGHTS = "external_weights"
_TYPES = {
    WEIGHTS: CheckpointType.CHECKPOINT_TYPE_TRAINING,
    SAMPLER_WEIGHTS: CheckpointType.CHECKPOINT_TYPE_SAMPLER,
    EXTERNAL_WEIGHTS: CheckpointType.CHECKPOINT_TYPE_EXTERNAL,
}
_PATH = re.compile(
    rf"tinker://([A-Za-z0-9_:.-]{{1,128}})/({WEIGHTS}|{SAMPLER_WEIGHTS}|{EXTERNAL_WEIGHTS})"
    r"/([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})"
)


class CheckpointPath(NamedTuple):
    """A canonical path, taken apart."""

    model_id: str
    kind: str
    """`WEIGHTS`, `SAMPLER_WEIGHTS` or `EXTERNAL_WEIGHTS`."""
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.model_id}/{self.kind}/{self.name}"


def parse(path: str) -> CheckpointPath:
    """Take a canonical path apart. Raises INVALID for anything else."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise invalid_field("path", f"is {path[:300]!r}; must be tinker://MODEL/KIND/NAME")
    return CheckpointPath(*match.groups())


def folder_name(model_id: str) -> str:
    """A model's folder: its id in the %-escapes of URLs, a leading '.' escaped too."""
    name = quote(model_id, safe="")
    return "%2E" + name[1:] if name.startswith(".") else name


class CheckpointFolders:
    """The checkpoints under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, path: CheckpointPath) -> Path:
        """Where a checkpoint lies or is to lie."""
        return self._root / folder_name(path.model_id) / path.kind / path.name

    def sweep(self) -> None:
        """Remove what killed writers left, and make the root."""
        self._root.mkdir(parents=True, exist_ok=True)
        for kind in self._root.glob("*/*"):
            for leftover in checkpoint.sweep(kind):
                _log.info("cleared up after a save that was cut off: %s", leftover)

    def remove(self, path: CheckpointPath) -> None:
        """Remove a checkpoint for good. One that is not there is no error."""
        checkpoint.remove(self.folder(path))

    def list(self) -> list[Checkpoint]:
        """What is there. Whatever cannot be read is told to the log and left out."""
        found = []
        for path in self._paths():
            try:
                summary = checkpoint.summarize(self.folder(path))
            except GatewayError as error:
                _log.warning("%s cannot be read and is left out: %s", path, error)
                continue
            found.append(_described(path, summary))
        return found

    def _paths(self) -> Iterator[CheckpointPath]:
        for folder in sorted(self._root.glob("*/*/*")):
            kind, model = folder.parent, folder.parent.parent
            try:
                path = parse(f"tinker://{unquote(model.name)}/{kind.name}/{folder.name}")
            except GatewayError:
                continue
            if self.folder(path) == folder:
                yield path


def notes(
    *,
    created: int,
    expires: int | None,
    user_metadata: Mapping[str, str],
    copied_from: str = "",
) -> dict[str, Any]:
    """What a checkpoint is to say of itself. Times are nanoseconds since 1970."""
    return {
        "created": created,
        "expires": expires,
        "user_metadata": dict(user_metadata),
        "copied_from": copied_from,
    }


def notes_of(described: Checkpoint) -> dict[str, Any]:
    """What a checkpoint that the gateway has described is to say of itself. One without a time of
    creation is created now."""
    expires = described.HasField("expire_time")
    return notes(
        created=described.create_time.ToNanoseconds() or time.time_ns(),
        expires=described.expire_time.ToNanoseconds() if expires else None,
        user_metadata=described.user_metadata,
        copied_from=described.copied_from,
    )


def _described(path: CheckpointPath, summary: checkpoint.CheckpointSummary) -> Checkpoint:
    metadata = summary.metadata
    described = Checkpoint(
        path=str(path),
        checkpoint_id=f"{path.kind}/{path.name}",
        type=_TYPES[path.kind],
        model_id=path.model_id,
        base_model=metadata.get(BASE_MODEL, ""),
        lora_rank=summary.adapter_config.get("r", 0),
        lora_config=lora_config(metadata),
        # The only one that the engine has; see `LocalBackend.create_model`.
        optimizer_config=OptimizerConfig(type=ADAMW),
        size_bytes=summary.size_bytes,
        user_metadata=metadata.get("user_metadata", {}),
        copied_from=metadata.get("copied_from", ""),
    )
    described.create_time.FromNanoseconds(metadata.get("created", 0))
    if expires := metadata.get("expires"):
        described.expire_time.FromNanoseconds(expires)
    return described


def lora_config(metadata: Mapping[str, Any]) -> LoraConfig | None:
    """The adapter that the engine noted in a checkpoint; None for a note that is none."""
    try:
        return lora_from_spec(LoraSpec(**metadata.get(LORA)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
