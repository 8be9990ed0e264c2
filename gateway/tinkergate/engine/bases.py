"""The base models in memory, with what runs on each."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path

import torch

from tinkergate.engine.adapters import Adapters
from tinkergate.engine.base import BaseModel
from tinkergate.engine.sampler import Sampler, SamplerLimits
from tinkergate.engine.scheduler import Queue, Scheduler
from tinkergate.engine.scorer import Scorer
from tinkergate.errors import ErrorReason, GatewayError, Kind

_LOADING = threading.Lock()
"""Held while `transformers` loads a model: it does so wrongly in two threads at once, and a process
may have several engines."""


class LoadedBase:
    """A base model, its adapters, and its lanes."""

    def __init__(self, scheduler: Scheduler, base: BaseModel, limits: SamplerLimits) -> None:
        self.base = base
        self.adapters = Adapters(base)
        self.sampler = Sampler(scheduler, base, self.adapters, limits)
        self.scorer = Scorer(scheduler, base, self.adapters)
        self.queue = Queue(scheduler, f"adapters of {base.name}")
        """Making and freeing of adapters that no model's queue orders."""
        self._numbers = itertools.count()

    def new_name(self) -> str:
        """A name for an adapter that none has had."""
        return f"adapter {next(self._numbers)}"


class Bases:
    """Loads base models when they are first asked for."""

    def __init__(
        self,
        scheduler: Scheduler,
        files: Executor,
        folders: Mapping[str, Path],
        *,
        device: str | None,
        dtype: torch.dtype | None,
        limits: SamplerLimits,
    ) -> None:
        self._scheduler = scheduler
        self._files = files
        self._folders = dict(folders)
        self._device = device
        self._dtype = dtype
        self._limits = limits
        self._lock = threading.Lock()
        self._loads: dict[str, Future[LoadedBase]] = {}

    def load(self, name: str) -> Future[LoadedBase]:
        """Have a base model in memory, which takes seconds the first time. What goes wrong is
        raised by the future, and tried again by the next call. Raises NOT_FOUND."""
        with self._lock:
            load = self._loads.get(name)
            if load is None or (load.done() and load.exception() is not None):
                folder = self._folders.get(name)
                if folder is None:
                    raise GatewayError(
                        Kind.NOT_FOUND,
                        ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
                        f"the engine has no base model {name!r}",
                    )
                load = self._loads[name] = self._files.submit(self._load, name, folder)
        return load

    def _load(self, name: str, folder: Path) -> LoadedBase:
        with _LOADING:
            base = BaseModel.load(folder, name=name, device=self._device, dtype=self._dtype)
        return LoadedBase(self._scheduler, base, self._limits)
