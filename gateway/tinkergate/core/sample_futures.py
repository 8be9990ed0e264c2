"""Sample calls that nobody holds a connection for: submitted, asked for later, cancelled.

What the doors need whose clients submit and poll. A future holds its call as a caller would, so
it runs to its end unless it is cancelled or its session ends. Answers that were handed out are
kept for `sample_retention`, the others for `result_retention`, all of them within
`sample_byte_budget`; those that were handed out go first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from tinkergate.core.clock import Clock
from tinkergate.core.identity import conflict, request_hash
from tinkergate.core.ids import session_of
from tinkergate.core.sample_call import SampleCall
from tinkergate.core.sampling import Sampling
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import GatewayError, Kind, cancelled
from tinkergate.v1 import ErrorReason, QueueState, SampleRequest, SampleResponse

OVERHEAD = 1024
"""Bytes that an answer takes beside its own."""


class QueueKey(NamedTuple):
    """Which completions are told together: those of a sampler whose seq_ids lie in one block."""

    sampler_id: str
    block: int


SEQ_IDS_PER_BLOCK = 1_000_000_000
"""Clients that share a sampler number their calls in blocks of their own (wire/tinker.md 6.2)."""


class Completion(NamedTuple):
    """A future that is done."""

    name: str
    size: int | None
    """Bytes of the answer; None if it failed."""


class SampleFuture:
    """One call that was submitted."""

    __slots__ = ("call", "end_time", "hash", "held", "name", "queue", "session_id", "told")

    def __init__(
        self, name: str, call: SampleCall, hashed: bytes, session_id: str, queue: QueueKey | None
    ) -> None:
        self.name = name
        self.call = call
        self.hash = hashed
        self.session_id = session_id
        self.queue = queue
        self.end_time = 0.0
        self.told = False
        """Whether the answer was handed out."""
        self.held = True
        """Whether it counts as one of the call's callers."""

    @property
    def queue_state(self) -> tuple[QueueState.ValueType, str]:
        """Why it waits, while it does, with words for people."""
        return self.call.queue_state

    @property
    def size(self) -> int:
        """Bytes of the answer, once it is there."""
        return self.call.size


@dataclass
class _Queue:
    """What has ended, in order, less what was acknowledged."""

    completions: list[Completion] = field(default_factory=list)
    dropped: int = 0
    """How many were acknowledged."""
    more: asyncio.Event = field(default_factory=asyncio.Event)


class SampleFutures:
    """The sample calls that were submitted."""

    def __init__(
        self, settings: CoreSettings, clock: Clock, sampling: Sampling, sessions: Sessions
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sampling = sampling
        self._futures: dict[str, SampleFuture] = {}
        self._told: OrderedDict[str, SampleFuture] = OrderedDict()
        self._untold: OrderedDict[str, SampleFuture] = OrderedDict()
        """Futures that are done, oldest first, by whether the answer was handed out."""
        self._bytes = 0
        self._queues: defaultdict[QueueKey, _Queue] = defaultdict(_Queue)
        self._watchers: set[asyncio.Task[None]] = set()
        sessions.on_end.append(self._session_ended)

    def __len__(self) -> int:
        return len(self._futures)

    async def submit(self, request: SampleRequest) -> SampleFuture:
        """Begin a call. A repeat of (sampler_id, seq_id) answers the same future. Raises what
        `Sampling.join` raises, and CONFLICT for a repeat that differs."""
        hashed = request_hash(request)
        name, queue = _named(request)
        known = self._futures.get(name)
        if known is None:
            call, source = await self._sampling.join(request)
            # Others ran while the source was looked up.
            known = self._futures.get(name)
            if known is None:
                self._sampling.hold(call)
                known = SampleFuture(name, call, hashed, source.session_id, queue)
                self._futures[name] = known
                watcher = asyncio.get_running_loop().create_task(self._watch(known))
                self._watchers.add(watcher)
                watcher.add_done_callback(self._watchers.discard)
        if known.hash != hashed:
            raise conflict(f"seq_id {request.seq_id} of sampler {request.sampler_id!r}")
        return known

    def require(self, name: str) -> SampleFuture:
        """The future of that name. Raises NOT_FOUND if there is none, or if it is no longer
        kept."""
        future = self._futures.get(name)
        if future is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND,
                f"there is no sample call {name!r}, or its answer is no longer kept",
            )
        return future

    async def wait(self, name: str, limit: float) -> SampleResponse | None:
        """The answer; None if it is not there within `limit` seconds. May be asked for again.
        Raises NOT_FOUND, or the call's own error."""
        future = self.require(name)
        call = future.call
        if not call.done and limit > 0:
            try:
                await asyncio.wait_for(call.ended(), limit)
            except TimeoutError:
                return None
        if call.response is None and call.error is None:
            return None
        if self._untold.pop(name, None) is not None:
            self._told[name] = future
            future.end_time = self._clock.elapsed()
        future.told = True
        if call.error is not None:
            raise call.error
        return call.response

    def cancel(self, name: str) -> None:
        """Stop a call that is wanted no longer. One that is done, or unknown, is no error."""
        future = self._futures.get(name)
        if future is not None and future.held and not future.call.done:
            future.held = False
            self._sampling.drop(future.call, cancelled())

    async def completions(
        self, sampler_id: str, block: int, after: int, limit: float
    ) -> tuple[list[Completion], int]:
        """What has ended since `after`, a cursor that this answered before (0 at first), and the
        new cursor. What lies before `after` is acknowledged, and not told again. Waits at most
        `limit` seconds for something to end."""
        key = QueueKey(sampler_id, block)
        queue = self._queues[key]
        acknowledged = min(max(0, after - queue.dropped), len(queue.completions))
        del queue.completions[:acknowledged]
        queue.dropped += acknowledged
        if not queue.completions and limit > 0:
            queue.more.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(queue.more.wait(), limit)
        told = list(queue.completions)
        return told, queue.dropped + len(told)

    def free(self, names: Iterable[str]) -> None:
        """The caller has these answers, and will not ask for them again."""
        for name in names:
            future = self._futures.get(name)
            if future is not None and future.call.done:
                self._forget(future)

    async def _watch(self, future: SampleFuture) -> None:
        await future.call.ended()
        future.end_time = self._clock.elapsed()
        (self._told if future.told else self._untold)[future.name] = future
        self._bytes += future.size + OVERHEAD
        if future.queue is not None:
            size = None if future.call.response is None else future.size
            queue = self._queues[future.queue]
            queue.completions.append(Completion(future.name, size))
            queue.more.set()
        while self._bytes > self._settings.sample_byte_budget and len(self._futures) > 1:
            oldest = next(iter((self._told or self._untold).values()))
            if oldest is future:
                break
            self._forget(oldest)

    def _forget(self, future: SampleFuture) -> None:
        del self._futures[future.name]
        if self._told.pop(future.name, None) or self._untold.pop(future.name, None):
            self._bytes -= future.size + OVERHEAD

    def reap(self) -> None:
        """Drop answers that are kept long enough."""
        now = self._clock.elapsed()
        for kept, retention in (
            (self._told, self._settings.sample_retention),
            (self._untold, self._settings.result_retention),
        ):
            while kept:
                oldest = next(iter(kept.values()))
                if oldest.end_time > now - retention:
                    break
                self._forget(oldest)

    def _session_ended(self, session_id: str) -> None:
        """Nobody asks for the session's answers any more."""
        for future in [f for f in self._futures.values() if f.session_id == session_id]:
            self.cancel(future.name)
        for key in [key for key in self._queues if session_of(key.sampler_id) == session_id]:
            self._queues.pop(key).more.set()


def _named(request: SampleRequest) -> tuple[str, QueueKey | None]:
    """The name of a request's future, and where its end is told."""
    if request.WhichOneof("source") != "sampler_id":
        return f"samples/{secrets.token_hex(12)}", None
    if not request.HasField("seq_id"):
        return f"samplers/{request.sampler_id}/samples/a{secrets.token_hex(12)}", None
    block = request.seq_id // SEQ_IDS_PER_BLOCK
    name = f"samplers/{request.sampler_id}/samples/{request.seq_id}"
    return name, QueueKey(request.sampler_id, block)
