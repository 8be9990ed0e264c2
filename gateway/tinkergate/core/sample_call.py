"""One sample call: the work, what has come of it so far, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from tinkergate.backends.base import Backend, SampleEvents
from tinkergate.core.faults import as_gateway_error
from tinkergate.errors import GatewayError, cancelled
from tinkergate.v1 import (
    IndexedSequence,
    QueueState,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    StreamSampleResponse,
)

_ACTIVE: Final = QueueState.QUEUE_STATE_ACTIVE


class SampleCall:
    """Work that any number of callers may follow, as a whole or part by part. It is a task of its
    own, so that it does not depend on any one of them."""

    def __init__(
        self,
        backend: Backend,
        request: SampleRequest,
        request_hash: bytes,
        on_end: Callable[[SampleCall], None],
    ) -> None:
        """`on_end` is called once, before any caller learns of the end."""
        self.request_hash = request_hash
        self._on_end = on_end
        self._ended = False
        self.samples = request.num_samples
        self.callers = 0
        self.grace: asyncio.TimerHandle | None = None
        """Runs while a call that may be attached to has no caller."""
        self.response: SampleResponse | None = None
        self.error: GatewayError | None = None
        self.end_time = 0.0
        self.size = 0
        """Bytes of the response."""
        self.queue_state: tuple[QueueState.ValueType, str] = (_ACTIVE, "")
        """Why it waits, while it does, as the backend tells it."""
        self._asks_about_prompt = _asks_about_prompt(request)
        self._prompt: SampleResponse | None = None
        self._sequences: list[tuple[int, SampledSequence]] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self.task = asyncio.get_running_loop().create_task(self._run(backend, request))

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.response is not None or self.error is not None

    async def _run(self, backend: Backend, request: SampleRequest) -> None:
        events = SampleEvents(
            on_prompt=self._on_prompt,
            on_sequence=self._on_sequence,
            on_queue_state=self._on_queue_state,
        )
        try:
            response = await backend.sample(request, events)
            if not self.done:
                self._complete(response)
                self.size = response.ByteSize()
                self.response = response
        except asyncio.CancelledError:
            self.error = self.error or cancelled("cancelled by the backend")
            raise
        except Exception as error:
            self.error = self.error or as_gateway_error(error, "sampling")
        finally:
            self._end()

    def stop(self, error: GatewayError) -> None:
        """Stop the work; whoever still waits gets `error`."""
        if not self.done:
            self.error = error
            self.task.cancel()
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_end(self)
            self._wake()

    def _on_prompt(self, prompt: SampleResponse) -> None:
        self._prompt = prompt
        self._wake()

    def _on_sequence(self, index: int, sequence: SampledSequence) -> None:
        self._sequences.append((index, sequence))
        self._wake()

    def _on_queue_state(self, state: QueueState.ValueType, reason: str) -> None:
        self.queue_state = (state, reason)

    def _complete(self, response: SampleResponse) -> None:
        """Whatever the backend did not report as it came."""
        if self._prompt is None and self._asks_about_prompt:
            self._prompt = SampleResponse(prompt_cache_hit_tokens=response.prompt_cache_hit_tokens)
            if response.HasField("prompt_logprobs"):
                self._prompt.prompt_logprobs = response.prompt_logprobs
            for field in ("topk_prompt_logprobs", "target_prompt_logprobs", "prompt_alt_tokens"):
                if response.HasField(field):
                    getattr(self._prompt, field).CopyFrom(getattr(response, field))
        reported = {index for index, _ in self._sequences}
        self._sequences.extend(
            (index, sequence)
            for index, sequence in enumerate(response.sequences)
            if index not in reported
        )

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    async def ended(self) -> None:
        """Wait until it has ended, one way or another."""
        while not self.done:
            await self._changed()

    async def whole(self) -> SampleResponse:
        """The response, once all sequences are finished."""
        await self.ended()
        if self.response is None:
            assert self.error is not None
            raise self.error
        return self.response

    async def parts(self) -> AsyncGenerator[StreamSampleResponse, None]:
        """The prompt, if anything was asked about it, and each sequence as it finishes, from the
        first on for every caller."""
        told_prompt = False
        told = 0
        while True:
            finished = self.done
            if self._prompt is not None and not told_prompt:
                told_prompt = True
                yield StreamSampleResponse(prompt=self._prompt)
            while told < len(self._sequences):
                index, sequence = self._sequences[told]
                told += 1
                part = IndexedSequence(index=index, sequence=sequence)
                yield StreamSampleResponse(sequence=part)
            if finished:
                break
            if not self.done and told == len(self._sequences):
                await self._changed()
        if self.error is not None:
            raise self.error


def _asks_about_prompt(request: SampleRequest) -> bool:
    return bool(
        request.prompt_logprobs
        or request.topk_prompt_logprobs
        or request.HasField("target_prompt_logprobs")
        or request.prompt_alt_tokens_k
    )
