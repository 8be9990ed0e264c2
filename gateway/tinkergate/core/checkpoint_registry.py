"""Which checkpoints there are, on which backend, and until when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from tinkergate.backends.base import SavedCheckpoint
from tinkergate.core.clock import Clock, nanoseconds, set_time
from tinkergate.core.ids import (
    EXTERNAL_WEIGHTS,
    SAMPLER_WEIGHTS,
    WEIGHTS,
    CheckpointPath,
    parse_path,
)
from tinkergate.errors import GatewayError, Kind
from tinkergate.store import CheckpointRow, Store
from tinkergate.v1 import Checkpoint, CheckpointType, ErrorReason, Model

TYPES: Final = {
    WEIGHTS: CheckpointType.CHECKPOINT_TYPE_TRAINING,
    SAMPLER_WEIGHTS: CheckpointType.CHECKPOINT_TYPE_SAMPLER,
    EXTERNAL_WEIGHTS: CheckpointType.CHECKPOINT_TYPE_EXTERNAL,
}
"""What a checkpoint can be used for, by the kind in its path."""


def set_times(message: Checkpoint, now: int, ttl: Duration | None) -> None:
    """A checkpoint is made at `now` (nanoseconds since 1970), and lives for `ttl` or for ever."""
    set_time(message.create_time, now)
    set_expiry(message, now, ttl)


def set_expiry(message: Checkpoint, now: int, ttl: Duration | None) -> None:
    """A checkpoint lives for `ttl` from `now` on, or for ever."""
    if ttl is None:
        message.ClearField("expire_time")
    else:
        set_time(message.expire_time, now + ttl.seconds * 1_000_000_000 + ttl.nanos)


class CheckpointEntry:
    """One checkpoint."""

    __slots__ = ("has_optimizer", "message", "number", "optimizer_steps")

    def __init__(
        self,
        number: int,
        message: Checkpoint,
        has_optimizer: bool | None,
        optimizer_steps: int | None = None,
    ) -> None:
        self.number = number
        self.message = message
        """Never changed, because answers share it; `CheckpointRegistry.change` puts another in its
        place. Another save under the same path makes another entry."""
        self.has_optimizer = has_optimizer
        """None if only the backend knows."""
        self.optimizer_steps = optimizer_steps
        """How many its model had taken; None if only the backend knows."""

    def steps_loaded(self, told: int, *, with_optimizer: bool) -> int:
        """How many optimizer steps a model has taken that was given these weights. `told` is the
        backend's answer: a service elsewhere need not know."""
        if not with_optimizer:
            return 0
        return told if self.optimizer_steps is None else self.optimizer_steps

    def check_optimizer(self, wanted: bool) -> None:
        """Raise if the optimizer's state is wanted, and known not to be there."""
        if wanted and self.has_optimizer is False:
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH,
                f"checkpoint {self.message.path!r} holds no optimizer state; load it without",
            )


class CheckpointRegistry:
    """All checkpoints of all backends."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._entries: dict[str, CheckpointEntry] = {}
        self._saving: Counter[str] = Counter()
        self._next_number = 1
        self.on_remove: list[Callable[[Checkpoint], None]] = []
        """Called with each checkpoint that is gone, or about to be replaced."""

    def newest_first(self) -> Iterator[CheckpointEntry]:
        """All checkpoints."""
        return reversed(self._entries.values())

    def of_backend(self, backend: str) -> list[Checkpoint]:
        """The checkpoints that a backend holds."""
        held = (entry.message for entry in self._entries.values())
        return [message for message in held if message.backend == backend]

    def find(self, path: str) -> CheckpointEntry | None:
        """The checkpoint of that path, if there is one."""
        return self._entries.get(path)

    def of_model(self, model_id: str) -> Iterator[CheckpointEntry]:
        """The checkpoints of one model, newest first."""
        return (e for e in self.newest_first() if e.message.model_id == model_id)

    def require(self, path: str) -> CheckpointEntry:
        """The checkpoint of that path. Raises NOT_FOUND."""
        entry = self._entries.get(path)
        if entry is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
                f"there is no checkpoint {path!r}",
            )
        return entry

    def reserve(self, path: str, *, overwrite: bool) -> None:
        """A save under this path begins; `release` follows. Raises CONFLICT if the path is taken,
        be it by a save that is still going on."""
        if not overwrite and (path in self._entries or path in self._saving):
            raise GatewayError(
                Kind.CONFLICT,
                ErrorReason.ERROR_REASON_CHECKPOINT_EXISTS,
                f"there is a checkpoint {path!r} already; choose another name, or overwrite it",
            )
        self._saving[path] += 1

    def reserve_unique(self, model: str, kind: str, base: str) -> CheckpointPath:
        """As `reserve`, under `base` or, if that is taken, `base` with a number."""
        path = CheckpointPath(model, kind, base)
        number = 2
        while str(path) in self._entries or str(path) in self._saving:
            path = path._replace(name=f"{base}-{number}")
            number += 1
        self._saving[str(path)] += 1
        return path

    def release(self, path: str) -> None:
        """A save under this path has ended, one way or another."""
        self._saving[path] -= 1
        if not self._saving[path]:
            del self._saving[path]

    def saved(
        self,
        path: CheckpointPath,
        model: Model,
        *,
        saved: SavedCheckpoint,
        optimizer_steps: int,
        ttl: Duration | None,
        user_metadata: Mapping[str, str],
    ) -> None:
        """A model's backend has saved a checkpoint. `optimizer_steps` is how many the model had
        taken."""
        message = Checkpoint(
            path=str(path),
            checkpoint_id=path.checkpoint_id,
            type=TYPES[path.kind],
            model_id=model.model_id,
            base_model=model.base_model,
            lora_rank=model.lora_config.rank,
            lora_config=model.lora_config,
            optimizer_config=model.optimizer_config,
            size_bytes=saved.size_bytes,
            user_metadata=user_metadata,
            backend=model.backend,
            upstream_path=saved.upstream_path,
        )
        set_times(message, self._clock.now(), ttl)
        self.add(message, saved.has_optimizer, optimizer_steps)

    def add(
        self,
        message: Checkpoint,
        has_optimizer: bool | None,
        optimizer_steps: int | None = None,
    ) -> CheckpointEntry:
        """Take a checkpoint in, in place of one of the same path if there is one."""
        if message.path in self._entries:
            self.remove(message.path)
        entry = CheckpointEntry(self._next_number, message, has_optimizer, optimizer_steps)
        self._next_number += 1
        self._entries[message.path] = entry
        self._store.insert(
            CheckpointRow,
            path=message.path,
            number=entry.number,
            model_id=message.model_id,
            has_optimizer=has_optimizer,
            optimizer_steps=optimizer_steps,
            message=message.SerializeToString(),
        )
        return entry

    def change(self, entry: CheckpointEntry, message: Checkpoint) -> None:
        """Put `message`, of the same path, in the place of what is known of a checkpoint."""
        entry.message = message
        self._store.update(CheckpointRow, message.path, message=message.SerializeToString())

    def remove(self, path: str) -> None:
        """Forget a checkpoint. Unknown paths are no error."""
        entry = self._entries.pop(path, None)
        if entry is not None:
            self._store.delete(CheckpointRow, path)
            for told in self.on_remove:
                told(entry.message)

    def expired(self) -> list[CheckpointEntry]:
        """Checkpoints whose time is over, but for those that are being saved anew."""
        now = self._clock.now()
        return [
            entry
            for entry in self._entries.values()
            if entry.message.HasField("expire_time")
            and nanoseconds(entry.message.expire_time) <= now
            and entry.message.path not in self._saving
        ]

    def restore(self, rows: Sequence[CheckpointRow]) -> None:
        """Take up what an earlier run of the gateway left."""
        for row in rows:
            message = Checkpoint.FromString(row.message)
            self._entries[row.path] = CheckpointEntry(
                row.number, message, row.has_optimizer, row.optimizer_steps
            )
            self._next_number = row.number + 1

    def reconcile(self, backend: str, held: Sequence[Checkpoint], *, complete: bool) -> None:
        """Compare with what a backend holds. Unknown checkpoints are taken in: the gateway stopped
        before it noted them. If `complete`, those that the backend does not list are forgotten."""
        for message in sorted(held, key=lambda message: nanoseconds(message.create_time)):
            path = parse_path(message.path)
            known = self._entries.get(message.path)
            if known is not None and not known.message.HasField("lora_config"):
                self._complete(known, message)
            if path is not None and known is None:
                taken = Checkpoint()
                taken.CopyFrom(message)
                taken.backend = backend
                taken.checkpoint_id = path.checkpoint_id
                taken.model_id = path.model_id
                has_optimizer = None if path.kind == WEIGHTS else False
                self.add(taken, has_optimizer)
        if complete:
            paths = {message.path for message in held}
            for entry in list(self._entries.values()):
                if entry.message.backend == backend and entry.message.path not in paths:
                    self.remove(entry.message.path)

    def _complete(self, known: CheckpointEntry, held: Checkpoint) -> None:
        """Take over what earlier versions of the gateway did not note."""
        if held.HasField("lora_config"):
            message = Checkpoint()
            message.CopyFrom(known.message)
            message.lora_config.CopyFrom(held.lora_config)
            message.optimizer_config.CopyFrom(held.optimizer_config)
            self.change(known, message)
