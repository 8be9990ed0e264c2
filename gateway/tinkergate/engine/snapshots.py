"""Frozen weights, for as long as somebody samples or scores with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from tinkergate.engine.bases import LoadedBase
from tinkergate.engine.sampler import Sampler
from tinkergate.engine.sampling import Sampled, SamplingEvents, SamplingRequest
from tinkergate.engine.scheduler import Handle
from tinkergate.engine.scorer import Scored, Scorer, ScoringRequest
from tinkergate.errors import GatewayError

T = TypeVar("T")


class Snapshot:
    """Weights that never change: a frozen adapter, or the bare base model.

    Every user holds it once, and it is freed when the last lets go; it is made with one holder.
    Calls that are running hold it too. For any thread.
    """

    def __init__(self, loaded: LoadedBase, adapter: str | None) -> None:
        """`adapter` is the name of a frozen adapter that nobody else uses; None means the bare
        base model."""
        self.loaded = loaded
        self.adapter = adapter
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> Snapshot:
        """One more holder."""
        with self._lock:
            if not self._holders:
                raise RuntimeError("the snapshot is freed")
            self._holders += 1
        return self

    def let_go(self) -> None:
        """One holder less."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        adapter, loaded = self.adapter, self.loaded
        if last and adapter is not None:
            # An engine that is closing needs no freeing.
            with suppress(GatewayError):
                loaded.queue.call(lambda: loaded.adapters.delete(adapter))

    def sample(
        self, request: SamplingRequest, events: SamplingEvents | None = None
    ) -> Handle[Sampled]:
        """Draw sequences; see `Sampler`."""
        sampler: Sampler = self.loaded.sampler
        return self.held(lambda: sampler.submit(self.adapter, request, events))

    def score(self, request: ScoringRequest) -> Handle[Scored]:
        """Score sequences; see `Scorer`."""
        scorer: Scorer = self.loaded.scorer
        return self.held(lambda: scorer.submit(self.adapter, request))

    def held(self, submit: Callable[[], Handle[T]]) -> Handle[T]:
        """Submit work, and hold the snapshot until it is done."""
        self.hold()
        try:
            handle = submit()
        except BaseException:
            self.let_go()
            raise
        handle.future.add_done_callback(lambda _: self.let_go())
        return handle
