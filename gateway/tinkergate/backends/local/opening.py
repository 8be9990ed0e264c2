"""From names and settings to the local backend: which base models it serves, and on what device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tinkergate.backends.local.backend import LocalBackend, ServedModel
from tinkergate.engine.engine import Engine
from tinkergate.engine.model_files import DEFAULT_MODEL, ModelFiles
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate_kernels import dispatch

_log = logging.getLogger(__name__)


async def open_backend(
    models: Sequence[str],
    data_dir: Path,
    *,
    name: str = "local",
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> LocalBackend:
    """The backend of that name, ready for its `start`. The first of its models is in memory then:
    what is wrong with it shows now. The others are loaded when they are first used.

    `models` are names, hub ids or folders; none means the default model and all that were added.
    `dtype` is a name of PyTorch's, such as "bfloat16". Raises GatewayError.
    """
    files = ModelFiles(report=_log.info)
    served = await asyncio.to_thread(served_models, files, models)
    _try_device(device)
    _try_kernels()
    engine = Engine(
        {model.name: model.folder for model in served},
        device=device,
        dtype=getattr(torch, dtype) if dtype else None,
        threads=threads,
    )
    _log.info("loading %s", served[0].name)
    try:
        await asyncio.wrap_future(engine.bases.load(served[0].name))
    except BaseException:
        engine.close()
        raise
    return LocalBackend(engine, served, data_dir, name=name)


def served_models(files: ModelFiles, wanted: Sequence[str]) -> list[ServedModel]:
    """The models that are wanted, each once, with their folders and all their names. Raises
    GatewayError for one that cannot be found; of those that nobody asked for by name, one that
    cannot be found is left out."""
    served: dict[str, ServedModel] = {}
    found = (_find(files, name) for name in wanted) if wanted else _all(files)
    for model in found:
        served.setdefault(model.name, model)
    return _without_clashes(served.values())


def _all(files: ModelFiles) -> Iterator[ServedModel]:
    yield _find(files, DEFAULT_MODEL)
    for entry in files.list():
        try:
            yield _find(files, entry.name)
        except GatewayError as error:
            _log.warning("%s is not served: %s", entry.name, error)


def _find(files: ModelFiles, wanted: str) -> ServedModel:
    folder = files.path(wanted)
    for entry in files.list():
        if wanted == entry.name or wanted in entry.aliases:
            return ServedModel(entry.name, folder, entry.aliases)
    if wanted.startswith(("/", ".", "~")):
        # By its whole path, clients on this machine find the tokenizer too.
        return ServedModel(str(folder), folder, (folder.name,))
    return ServedModel(wanted, folder)


def _without_clashes(models: Iterable[ServedModel]) -> list[ServedModel]:
    """The models with those of their aliases that are not taken by a name or by one before."""
    models = list(models)
    taken = {model.name for model in models}
    kept = []
    for model in models:
        aliases = tuple(alias for alias in model.aliases if alias not in taken)
        taken.update(aliases)
        kept.append(replace(model, aliases=aliases))
    return kept


def _try_device(device: str | None) -> None:
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter for CUDA that is not built in
        raise GatewayError(
            Kind.UNAVAILABLE,
            ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"the device {device!r} cannot be used: {str(error).splitlines()[0]}",
        ) from error


def _try_kernels() -> None:
    try:
        plain = dispatch.asked() == "plain"
    except ValueError as error:
        raise GatewayError(
            Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE, str(error)
        ) from error
    if plain:
        _log.info("logprobs and losses in plain PyTorch, as %s says", dispatch.VARIABLE)
