"""The embedded engine: base models, the models that train on them, and snapshots to sample with.

For any thread. The work runs on one numeric thread and comes back through futures; files are read
and written beside it, while it goes on with other lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinkergate.engine import checkpoint
from tinkergate.engine.adapters import LoraSpec
from tinkergate.engine.bases import Bases, LoadedBase
from tinkergate.engine.interpolation import check_coefficients, interpolated
from tinkergate.engine.models import Models, noted, read_checkpoint
from tinkergate.engine.sampler import SamplerLimits
from tinkergate.engine.scheduler import Handle, Scheduler, Work
from tinkergate.engine.snapshots import Snapshot
from tinkergate.engine.threads import compute_alone, compute_with_helpers

_FILE_THREADS = 4


class Engine:
    """Everything numeric of one process."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        threads: int | None = None,
        limits: SamplerLimits | None = None,
    ) -> None:
        """`folders` has the Hugging Face folder of each base model by its name; each is loaded
        when it is first asked for, as `BaseModel.load` says. `threads` is how many threads
        PyTorch computes with; None leaves it to PyTorch."""
        self._scheduler = Scheduler(prepare=partial(compute_with_helpers, threads))
        self._files = ThreadPoolExecutor(
            _FILE_THREADS, thread_name_prefix="engine-files", initializer=compute_alone
        )
        self.bases = Bases(
            self._scheduler,
            self._files,
            folders,
            device=device,
            dtype=dtype,
            limits=limits or SamplerLimits(),
        )
        self.models = Models(self._scheduler, self._files)

    def open_snapshot(self, loaded: LoadedBase, folder: Path) -> Handle[Snapshot]:
        """A snapshot of a checkpoint's weights. Raises GatewayError if it does not fit."""

        def work() -> Work[Snapshot]:
            reading = self._files.submit(read_checkpoint, folder, loaded.base.name, False)
            yield reading
            read = reading.result()
            name = loaded.new_name()
            loaded.adapters.add(name, read.adapter_config, read.weights, trainable=False)
            return Snapshot(loaded, name)

        return loaded.queue.submit(work)

    def write_snapshot(self, snapshot: Snapshot, folder: Path) -> Handle[int]:
        """Write a snapshot as a checkpoint without optimizer state, for `open_snapshot`. Must be
        held until it is written. Answers its size in bytes. Raises GatewayError."""
        loaded, adapter = snapshot.loaded, snapshot.adapter
        if adapter is None:
            raise ValueError("a bare base model is no checkpoint")

        def work() -> Work[int]:
            writing = self._files.submit(
                checkpoint.save,
                folder,
                adapter_config=loaded.adapters.peft_config(adapter),
                weights={
                    key: weight.detach().cpu()
                    for key, weight in loaded.adapters.parameters(adapter)
                },
                optimizer=None,
                metadata=noted({}, loaded.base.name, loaded.adapters.spec(adapter)),
                overwrite=False,
            )
            yield writing
            return writing.result()

        return loaded.queue.submit(work, interruptible=False)

    def import_adapter(
        self, loaded: LoadedBase, source: Path, target: Path, metadata: Mapping[str, Any]
    ) -> Handle[int]:
        """Take in a PEFT folder as a checkpoint without optimizer state, once it is found to fit
        the base model. Answers its size in bytes. Raises GatewayError."""
        return self._make_checkpoint(
            loaded, partial(checkpoint.read_peft_folder, source), target, metadata
        )

    def interpolate(
        self,
        loaded: LoadedBase,
        sources: Sequence[Path],
        coefficients: Sequence[float],
        target: Path,
        metadata: Mapping[str, Any],
    ) -> Handle[int]:
        """Make a checkpoint, without optimizer state, of the weighted sum of others on the same
        base model; see `interpolation`. Answers its size in bytes. Raises GatewayError, at once for
        coefficients that break the rules."""
        check_coefficients(len(sources), coefficients)

        def read() -> tuple[dict[str, Any], dict[str, Tensor]]:
            found = [read_checkpoint(source, loaded.base.name, False) for source in sources]
            adapters = [(one.adapter_config, one.weights) for one in found]
            return interpolated(adapters, coefficients)

        return self._make_checkpoint(loaded, read, target, metadata)

    def _make_checkpoint(
        self,
        loaded: LoadedBase,
        read: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]],
        target: Path,
        metadata: Mapping[str, Any],
    ) -> Handle[int]:
        """Write what `read`, beside the numeric thread, gives, if it fits the base model."""

        def work() -> Work[int]:
            reading = self._files.submit(read)
            yield reading
            config, weights = reading.result()
            spec, config = _fitting(loaded, config, weights)
            writing = self._files.submit(
                checkpoint.save,
                target,
                adapter_config=config,
                weights=weights,
                optimizer=None,
                metadata=noted(metadata, loaded.base.name, spec),
                overwrite=False,
            )
            yield writing
            return writing.result()

        return loaded.queue.submit(work, interruptible=False)

    def close(self) -> None:
        """End. What is not done fails; files that are being written are finished."""
        self._scheduler.close()
        self._files.shutdown(wait=True)


def _fitting(
    loaded: LoadedBase, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[LoraSpec, dict[str, Any]]:
    """What an adapter is on a base model, and its configuration as we write it. Raises
    GatewayError if it does not fit."""
    name = loaded.new_name()
    loaded.adapters.add(name, config, weights, trainable=False)
    try:
        return loaded.adapters.spec(name), loaded.adapters.peft_config(name)
    finally:
        loaded.adapters.delete(name)
