"""SamplingService's Sample and StreamSample.

A call with a seq_id has an identity: a repeat attaches to the call while it runs, and is given its
answer for some time after it. Such a call goes on for a short grace when its last caller is gone,
because the caller's connection may have broken; any other call stops at once. Answers are never
written to the store, and failures are not kept: a repeat of a failed call draws anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from tinkergate.core.admission import Admission, queue_full
from tinkergate.core.clock import Clock
from tinkergate.core.identity import conflict, request_hash
from tinkergate.core.sample_call import SampleCall
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.core.sources import Source, Sources, name_as_backend_does
from tinkergate.core.validation.sampling import check_sample
from tinkergate.errors import GatewayError, cancelled
from tinkergate.v1 import SampleRequest, SampleResponse, StreamSampleResponse

_Key = tuple[str, int]
"""A sampler's id and a seq_id."""


class Sampling:
    """The sampling RPCs."""

    def __init__(
        self,
        settings: CoreSettings,
        clock: Clock,
        admission: Admission,
        sessions: Sessions,
        sources: Sources,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._admission = admission
        self._sessions = sessions
        self._sources = sources
        self._running: dict[SampleCall, _Key | None] = {}
        self._running_samples = 0
        self._tasks: set[asyncio.Task[None]] = set()
        """Those of the running calls, and of stopped ones that are still winding up."""
        self._by_key: dict[_Key, SampleCall] = {}
        self._kept: OrderedDict[_Key, SampleCall] = OrderedDict()
        """Calls that are done and may be asked for again, oldest first."""
        self._kept_bytes = 0

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Answer Sample. Cancelling the awaiting task leaves the call. Raises EXHAUSTED if too
        much is being drawn already."""
        call, source = await self.join(request)
        with self._following(call, source):
            return await call.whole()

    async def stream(self, request: SampleRequest) -> AsyncGenerator[StreamSampleResponse, None]:
        """Answer StreamSample. Closing the iterator leaves the call; close it (`aclosing`) where
        it may not be read to its end."""
        call, source = await self.join(request)
        with self._following(call, source):
            async with aclosing(call.parts()) as parts:
                async for part in parts:
                    yield part

    async def join(self, request: SampleRequest) -> tuple[SampleCall, Source]:
        """The call that the request is a repeat of, or a new one. Whoever joins is to be counted
        as one of its callers before waiting for anything. Raises EXHAUSTED if too much is being
        drawn already."""
        source = await self._sources.find(request)
        key = hashed = None
        if request.HasField("seq_id"):
            key, hashed = (request.sampler_id, request.seq_id), request_hash(request)
            call = self._by_key.get(key)
            if call is not None:
                if call.request_hash != hashed:
                    raise conflict(f"seq_id {request.seq_id} of sampler {request.sampler_id!r}")
                return call, source
        self._admission.check()
        check_sample(request, source.route.facts, self._settings)
        request.num_samples = request.num_samples or 1
        name_as_backend_does(request, source.route)
        self._check_room(request.num_samples)
        call = SampleCall(source.route.backend, request, hashed or b"", self._ended)
        self._running[call] = key
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)
        self._running_samples += call.samples
        if key is not None:
            self._by_key[key] = call
        return call, source

    def _check_room(self, samples: int) -> None:
        limit = self._settings.max_running_samples
        if self._running_samples and self._running_samples + samples > limit:
            raise queue_full(
                f"{self._running_samples} sequences are being drawn, and {samples} more would be "
                f"over the {limit} that may be",
                self._settings.queue_retry_delay,
            )

    @contextmanager
    def _following(self, call: SampleCall, source: Source) -> Iterator[None]:
        """Be one of the call's callers."""
        self.hold(call)
        try:
            with self._sessions.calling(source.session_id):
                yield
        finally:
            call.callers -= 1
            if not call.callers and not call.done:
                self._last_caller_gone(call)

    def hold(self, call: SampleCall) -> None:
        """Count one more caller, who need not be connected."""
        call.callers += 1
        if call.grace is not None:
            call.grace.cancel()
            call.grace = None

    def drop(self, call: SampleCall, error: GatewayError) -> None:
        """A caller that was counted by `hold` wants the call no longer: without others it stops
        at once, with `error`."""
        call.callers -= 1
        if not call.callers:
            call.stop(error)

    def _last_caller_gone(self, call: SampleCall) -> None:
        if self._running.get(call) is None:
            call.stop(cancelled())
        else:
            loop = asyncio.get_running_loop()
            call.grace = loop.call_later(self._settings.sample_grace, self._grace_over, call)

    def _grace_over(self, call: SampleCall) -> None:
        """Nobody came back."""
        call.stop(cancelled())

    def _ended(self, call: SampleCall) -> None:
        """The work is over, one way or another. What failed is forgotten, so that a repeat is a
        new call."""
        self._running_samples -= call.samples
        if call.grace is not None:
            call.grace.cancel()
        key = self._running.pop(call)
        if key is None:
            return
        if call.response is None:
            del self._by_key[key]
            return
        call.end_time = self._clock.elapsed()
        self._kept[key] = call
        self._kept_bytes += call.size
        while self._kept_bytes > self._settings.sample_byte_budget and len(self._kept) > 1:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        key, call = self._kept.popitem(last=False)
        self._kept_bytes -= call.size
        del self._by_key[key]

    def reap(self) -> None:
        """Drop answers that are kept long enough."""
        oldest = self._clock.elapsed() - self._settings.sample_retention
        while self._kept and next(iter(self._kept.values())).end_time <= oldest:
            self._drop_oldest()

    async def idle(self) -> None:
        """Wait until nothing is being drawn."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def stop_all(self, error: GatewayError) -> None:
        """The gateway stops: end all calls with `error`."""
        for call in list(self._running):
            call.stop(error)
