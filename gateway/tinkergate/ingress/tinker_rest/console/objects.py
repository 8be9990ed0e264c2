"""Checkpoints, training runs and cursors as this dialect tells them (wire section 15.2)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from tinkergate.core.paging import Window
from tinkergate.core.training_runs import TrainingRun
from tinkergate.ingress.tinker_rest.tokens import ISSUER
from tinkergate.v1 import Checkpoint, CheckpointType, ModelState

T = TypeVar("T")

OWNER: Final = ISSUER
"""Who owns everything: the gateway does not tell its callers' belongings apart."""

_BROKEN: Final = (ModelState.MODEL_STATE_FAILED, ModelState.MODEL_STATE_LOST)


def time_of(timestamp: Timestamp) -> str:
    """ISO 8601 with the zone, to the microsecond."""
    whole = datetime.fromtimestamp(timestamp.seconds, UTC)
    return whole.replace(microsecond=timestamp.nanos // 1000).isoformat()


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    """One checkpoint."""
    kind = CheckpointType.Name(checkpoint.type).removeprefix("CHECKPOINT_TYPE_").lower()
    return {
        "checkpoint_id": checkpoint.checkpoint_id,
        "checkpoint_type": kind,
        "time": time_of(checkpoint.create_time),
        "tinker_path": checkpoint.path,
        "size_bytes": checkpoint.size_bytes or None,
        "public": checkpoint.public,
        "expires_at": (
            time_of(checkpoint.expire_time) if checkpoint.HasField("expire_time") else None
        ),
        "user_metadata": dict(checkpoint.user_metadata) or None,
    }


def run_object(run: TrainingRun) -> dict[str, Any]:
    """One training run. `corrupted` is true for a model that could not be made or was lost with
    the process that trained it: the run cannot go on. Its checkpoints are whole."""
    model = run.model
    return {
        "training_run_id": model.model_id,
        "base_model": model.base_model,
        "model_owner": OWNER,
        "is_lora": True,
        "corrupted": model.state in _BROKEN,
        "lora_rank": model.lora_config.rank or None,
        "last_request_time": time_of(model.last_request_time),
        "last_checkpoint": _optional(run.last_checkpoint),
        "last_sampler_checkpoint": _optional(run.last_sampler_checkpoint),
        "user_metadata": dict(model.user_metadata) or None,
    }


def _optional(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    return None if checkpoint is None else checkpoint_object(checkpoint)


def cursor_object(window: Window[T]) -> dict[str, int]:
    """Where a window lies in the list, and how long the list is."""
    return {"offset": window.offset, "limit": window.limit, "total_count": window.total}
