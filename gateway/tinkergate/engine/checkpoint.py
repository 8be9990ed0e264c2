"""Checkpoints: PEFT folders with the optimizer's state beside the weights.

    adapter_config.json         PEFT's own; `peft.PeftModel.from_pretrained` takes the folder as is
    adapter_model.safetensors   the weights, by PEFT's keys
    optimizer.safetensors       AdamW's moments: "exp_avg.<key>" and "exp_avg_sq.<key>"
    tinkergate.json             written last: sizes and SHA-256 of the others, the step, metadata

A checkpoint is there whole or not at all; see `atomic_folder`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from tinkergate.engine.atomic_folder import AlreadyThereError, remove, sweep, writing
from tinkergate.engine.optimizer import OptimizerState
from tinkergate.engine.peft_format import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapted_paths,
    mismatch,
    rank_and_alpha,
    read_folder,
)
from tinkergate.errors import ErrorReason, GatewayError, Kind

__all__ = [
    "OPTIMIZER_FILE",
    "RECORD_FILE",
    "CheckpointSummary",
    "FileFacts",
    "LoadedCheckpoint",
    "copy",
    "files",
    "load",
    "read_peft_folder",
    "remove",
    "save",
    "summarize",
    "sweep",
]

OPTIMIZER_FILE = "optimizer.safetensors"
RECORD_FILE = "tinkergate.json"

_MOMENTS = ("exp_avg", "exp_avg_sq")


class _File(BaseModel):
    size: int
    sha256: str


class _Record(BaseModel):
    """The contents of tinkergate.json."""

    format: Literal[1] = 1
    """The version of the layout."""
    files: dict[str, _File]
    optimizer_steps: int | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint, read and checked. Tensors are on the CPU."""

    adapter_config: dict[str, Any]
    weights: dict[str, Tensor]
    """By PEFT's keys."""
    optimizer: OptimizerState | None
    metadata: dict[str, Any]
    """What `save` was given."""
    size_bytes: int
    """Of all files together."""


@dataclass(frozen=True)
class CheckpointSummary:
    """What a checkpoint says of itself, without its tensors being read."""

    adapter_config: dict[str, Any]
    metadata: dict[str, Any]
    has_optimizer: bool
    optimizer_steps: int
    """0 without optimizer state."""
    size_bytes: int


@dataclass(frozen=True)
class FileFacts:
    """One file of a checkpoint."""

    size: int
    """In bytes."""
    sha256: bytes
    """Of the contents as they were written."""


def save(
    folder: Path,
    *,
    adapter_config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    optimizer: OptimizerState | None,
    metadata: Mapping[str, Any],
    overwrite: bool,
) -> int:
    """Write a checkpoint and answer its size in bytes.

    `adapter_config` and `weights` are in PEFT's format; `metadata` is anything that JSON holds.
    The folder appears at once with all of it, or a killed process leaves what was there before
    (see `sweep`). Raises GatewayError: mismatch for an adapter that plain PEFT would not load as
    it is, CONFLICT if the folder is there and `overwrite` is not set, UNAVAILABLE if it cannot be
    written.
    """
    _check_adapter(adapter_config, weights)
    contents = {
        CONFIG_FILE: _json(dict(adapter_config)),
        WEIGHTS_FILE: _pack(weights),
    }
    if optimizer is not None:
        moments = {
            f"{moment}.{key}": tensor
            for moment in _MOMENTS
            for key, tensor in getattr(optimizer, moment).items()
        }
        contents[OPTIMIZER_FILE] = _pack(moments)
    record = _Record(
        files={name: _File(size=len(d), sha256=_sha256(d)) for name, d in contents.items()},
        optimizer_steps=None if optimizer is None else optimizer.step,
        metadata=dict(metadata),
    )
    contents[RECORD_FILE] = _json(record.model_dump())
    with _writing(folder, overwrite=overwrite) as partial:
        for name, data in contents.items():
            (partial / name).write_bytes(data)
    return sum(map(len, contents.values()))


def copy(source: Path, target: Path, metadata: Mapping[str, Any]) -> CheckpointSummary:
    """Make another checkpoint of the same contents, and answer what it says of itself. `metadata`
    is what it says instead, or beside, what the original does.

    The files are shared where the file system can (hard links: they are never written again), so
    that either may be removed without the other. Raises GatewayError as `summarize` and `save` do,
    and mismatch if the original is replaced in the middle.
    """
    record = _read_record(source)
    changed = record.model_copy(update={"metadata": {**record.metadata, **metadata}})
    with _writing(target, overwrite=False) as partial:
        for name in record.files:
            _check_size(source, name, record)
            _link(source / name, partial / name)
        (partial / RECORD_FILE).write_bytes(_json(changed.model_dump()))
        if _read_record(source) != record:
            raise mismatch(f"checkpoint {source.name!r} was replaced while it was copied")
    return summarize(target)


def files(folder: Path) -> dict[str, FileFacts]:
    """The files of a checkpoint by name, the record included. Raises GatewayError as `summarize`
    does."""
    record = _read_record(folder)
    for name in record.files:
        _check_size(folder, name, record)
    found = {name: FileFacts(f.size, bytes.fromhex(f.sha256)) for name, f in record.files.items()}
    try:
        data = (folder / RECORD_FILE).read_bytes()
    except OSError as error:
        raise _damaged(folder / RECORD_FILE, f"it cannot be read: {error.strerror}") from error
    return {**found, RECORD_FILE: FileFacts(len(data), hashlib.sha256(data).digest())}


@contextmanager
def _writing(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """`atomic_folder.writing`, raising GatewayError."""
    try:
        with writing(folder, overwrite=overwrite) as partial:
            yield partial
    except AlreadyThereError as error:
        raise GatewayError(
            Kind.CONFLICT,
            ErrorReason.ERROR_REASON_CHECKPOINT_EXISTS,
            f"there is a checkpoint {folder.name!r} already",
        ) from error
    except OSError as error:
        raise GatewayError(
            Kind.UNAVAILABLE,
            ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"checkpoint {folder.name!r} cannot be written: {error.strerror}",
        ) from error


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where there are no such links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def load(folder: Path, *, with_optimizer: bool = True) -> LoadedCheckpoint:
    """Read a checkpoint that `save` wrote. Every file is checked against its recorded size and
    SHA-256. Raises GatewayError: NOT_FOUND if there is none, mismatch naming the file that is
    missing or damaged.

    Without `with_optimizer` the optimizer's state is neither read nor answered.
    """
    record = _read_record(folder)
    optimizer = None
    if with_optimizer and record.optimizer_steps is not None:
        optimizer = _read_optimizer(folder, record)
    return LoadedCheckpoint(
        adapter_config=json.loads(_read_checked(folder, CONFIG_FILE, record)),
        weights=_read_tensors(folder, WEIGHTS_FILE, record),
        optimizer=optimizer,
        metadata=record.metadata,
        size_bytes=_size(folder, record),
    )


def summarize(folder: Path) -> CheckpointSummary:
    """Look at a checkpoint without reading its tensors. Raises GatewayError as `load` does, for a
    tensor file only if it is missing or has another size."""
    record = _read_record(folder)
    for name in record.files:
        _check_size(folder, name, record)
    return CheckpointSummary(
        adapter_config=json.loads(_read_checked(folder, CONFIG_FILE, record)),
        metadata=record.metadata,
        has_optimizer=record.optimizer_steps is not None,
        optimizer_steps=record.optimizer_steps or 0,
        size_bytes=_size(folder, record),
    )


def read_peft_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the float32 weights of an adapter that PEFT or another program saved.
    Raises GatewayError naming what is missing, not finite, or more than plain LoRA: pickled
    weights, DoRA, biases, rank and alpha patterns, embeddings, fully trained modules, ..."""
    if not (folder / WEIGHTS_FILE).is_file() and (folder / "adapter_model.bin").exists():
        raise mismatch(f"adapter_model.bin is a pickle, which can run code; must be {WEIGHTS_FILE}")
    config, weights = read_folder(folder)
    rank_and_alpha(config)
    adapted_paths(weights)
    for key, weight in weights.items():
        if not weight.is_floating_point() or not torch.isfinite(weight).all():
            raise mismatch(f"{key} has numbers that are not finite floats")
    return config, {key: weight.float() for key, weight in weights.items()}


def _check_adapter(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse what is not plain LoRA with weights that PEFT finds by the configuration."""
    rank_and_alpha(config)
    targets = config.get("target_modules")
    if isinstance(targets, str):
        raise mismatch(f"target_modules is the pattern {targets!r}; must be a list of names")
    if not targets:
        raise mismatch("target_modules is empty; must list the adapted modules")
    if (task := config.get("task_type")) != "CAUSAL_LM":
        raise mismatch(f"task_type is {task!r}; must be 'CAUSAL_LM'")
    for path in adapted_paths(weights):
        if not any(path == target or path.endswith(f".{target}") for target in targets):
            raise mismatch(f"the weights adapt {path!r}, which target_modules does not name")


def _read_record(folder: Path) -> _Record:
    path = folder / RECORD_FILE
    try:
        return _Record.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GatewayError(
            Kind.NOT_FOUND,
            ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
            f"there is no checkpoint {folder.name!r}",
        ) from error
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise _damaged(path, f"{place}: {first['msg']}") from error


def _read_optimizer(folder: Path, record: _Record) -> OptimizerState:
    moments: dict[str, dict[str, Tensor]] = {moment: {} for moment in _MOMENTS}
    for name, tensor in _read_tensors(folder, OPTIMIZER_FILE, record).items():
        moment, _, key = name.partition(".")
        moments[moment][key] = tensor
    return OptimizerState(record.optimizer_steps or 0, **moments)


def _read_tensors(folder: Path, name: str, record: _Record) -> dict[str, Tensor]:
    data = _read_checked(folder, name, record)
    try:
        return dict(safetensors.torch.load(data))
    except (SafetensorError, ValueError) as error:
        raise _damaged(folder / name, str(error)) from error


def _read_checked(folder: Path, name: str, record: _Record) -> bytes:
    _check_size(folder, name, record)
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise _damaged(folder / name, f"it cannot be read: {error.strerror}") from error
    if _sha256(data) != record.files[name].sha256:
        raise _damaged(folder / name, "its contents are not those that were saved")
    return data


def _check_size(folder: Path, name: str, record: _Record) -> None:
    path = folder / name
    if name not in record.files:
        raise _damaged(folder / RECORD_FILE, f"it does not list {name}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    if size != record.files[name].size:
        raise _damaged(path, f"it has {size} bytes; {record.files[name].size} were saved")


def _damaged(path: Path, how: str) -> GatewayError:
    return mismatch(f"{path.name} of checkpoint {path.parent.name!r} is damaged: {how}")


def _size(folder: Path, record: _Record) -> int:
    return sum(f.size for f in record.files.values()) + (folder / RECORD_FILE).stat().st_size


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    # Copies, because safetensors refuses tensors that share memory.
    on_cpu = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    return bytes(safetensors.torch.save(on_cpu, metadata={"format": "pt"}))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
