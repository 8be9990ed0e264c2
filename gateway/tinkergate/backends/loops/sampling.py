"""Sample calls (wire section 8)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tinkergate.backends.base import OnQueueState, SampleEvents
from tinkergate.backends.errands import Errands
from tinkergate.backends.loops.operations import Accepted, OperationLost, Operations, accepted
from tinkergate.backends.loops.readiness import Readiness
from tinkergate.backends.loops.sampler import LoopsSampler
from tinkergate.backends.loops.samplers import UpstreamSamplers
from tinkergate.backends.loops.service import (
    QUEUE,
    SAMPLER,
    Call,
    Service,
    at_leisure,
    body_of,
)
from tinkergate.dialects.loops.read_completions import IntArray, response_from_json
from tinkergate.dialects.loops.write_requests import prompt_tokens, sample_json
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import GatewayError, Kind, invalid_field, unsupported
from tinkergate.http import Answer
from tinkergate.v1 import QueueState, SampleRequest, SampleResponse

LOST_TRIES = 3
"""How often a call is submitted whose result the service loses."""
CANCEL_TIMEOUT = 5.0
THREAD_NUMBERS = 1 << 14
"""From how many numbers on an answer is made a message on another thread."""
POLICY_VERSION = "x-trainers-policy-version"


class Drawing:
    """Draws sequences at the service."""

    def __init__(
        self,
        service: Service,
        operations: Operations,
        samplers: UpstreamSamplers,
        readiness: Readiness,
        errands: Errands,
        max_context: Callable[[str], int],
    ) -> None:
        """`max_context` knows the most tokens of a base model, 0 if nobody does."""
        self._service = service
        self._operations = operations
        self._samplers = samplers
        self._readiness = readiness
        self._errands = errands
        self._max_context = max_context

    async def sample(self, request: SampleRequest, events: SampleEvents) -> SampleResponse:
        """Answer a sample call. Cancelling the task asks the service to stop."""
        self._check(request)
        told = (QueueState.QUEUE_STATE_ACTIVE, "")

        def on_state(state: QueueState.ValueType, reason: str) -> None:
            nonlocal told
            if (state, reason) != told:
                told = (state, reason)
                events.on_queue_state(state, reason)

        return await self._draw(await self._samplers.of(request), request, on_state)

    async def answer(self, request: SampleRequest) -> SampleResponse:
        """Answer a sample call that nobody watches."""
        return await self._draw(await self._samplers.of(request), request, _unwatched)

    def _check(self, request: SampleRequest) -> None:
        """Raise UNSUPPORTED for what Loops does not have."""
        params = request.sampling_params
        stop = params.WhichOneof("stop")
        for feature, asked in (
            ("topk_sample_logprobs", request.topk_sample_logprobs),
            ("target_prompt_logprobs", request.HasField("target_prompt_logprobs")),
            ("prompt_alt_tokens_k", request.prompt_alt_tokens_k),
            ("prompt_logprobs_last_n", request.HasField("prompt_logprobs_last_n")),
            ("record_stability_info", request.record_stability_info),
            (
                "an empty list of stops, which switches off the model's own end",
                stop is not None and not getattr(params, stop).values,
            ),
        ):
            if asked:
                raise unsupported(feature, self._service.name)

    async def _draw(
        self, sampler: LoopsSampler, request: SampleRequest, on_state: OnQueueState
    ) -> SampleResponse:
        """What a call of a sampler answers."""
        max_tokens = self._max_tokens(sampler, request)
        body = sample_json(request, max_tokens)
        self._samplers.begin(sampler)
        try:
            facts = sampler.facts
            try:
                fields = await self._drawn(sampler, body, on_state)
            except GatewayError as error:
                # Samplers that nobody used for long are gone.
                if error.kind is not Kind.NOT_FOUND or not await self._samplers.remake(
                    sampler, facts
                ):
                    raise
                fields = await self._drawn(sampler, body, on_state)
        finally:
            self._samplers.end(sampler)
        sampler.answered = True
        sampler.seen = asyncio.get_running_loop().time()
        tokens = _text_alone(request)
        try:
            return await at_leisure(
                response_from_json,
                fields,
                request,
                tokens,
                max_tokens,
                sampler.echo,
                large=_numbers(request, max_tokens) > THREAD_NUMBERS,
            )
        except GatewayError as error:
            raise self._service.broken(
                f"sample of {sampler.facts.sampler_id}",
                f"has an answer that makes no sense: {error}",
            ) from None

    async def _drawn(
        self, sampler: LoopsSampler, body: dict[str, Any], on_state: OnQueueState
    ) -> Fields:
        """The completion of a call."""
        body = body | sampler.source
        if sampler.dedicated:
            await self._readiness.sampler(sampler, on_state)
            return await self._at_once(sampler, body, on_state)
        return await self._queued(sampler, body, on_state)

    def _max_tokens(self, sampler: LoopsSampler, request: SampleRequest) -> int:
        """The most tokens to draw; without a word of the caller's, to the end of the context."""
        params = request.sampling_params
        if params.HasField("max_tokens"):
            return params.max_tokens
        context = self._max_context(sampler.base_model)
        used = _prompt_length(request)
        if context <= used:
            raise invalid_field(
                "sampling_params.max_tokens",
                f"is not given, and the service does not say where the context of "
                f"{sampler.base_model!r} ends",
            )
        return context - used

    async def _at_once(
        self, sampler: LoopsSampler, body: dict[str, Any], on_state: OnQueueState
    ) -> Fields:
        """The completion that a dedicated sampler answers."""
        settings = self._service.settings
        call = self._call(sampler, body)
        call = replace(
            call,
            manners=SAMPLER,
            within=settings.operation_time,
            starting=sampler.starting_time(settings.ready_time),
        )

        def read(answer: Answer) -> tuple[Fields, str]:
            if answer.status != 200:
                raise invalid_field("status", f"is {answer.status}; must be 200")
            return body_of(answer), answer.headers.get(POLICY_VERSION, "")

        def on_wait(words: str) -> None:
            on_state(QueueState.QUEUE_STATE_PAUSED_CAPACITY, words)

        fields, served = await self._service.call(call, read, on_wait=on_wait)
        live = sampler.publication is not None and served.isdecimal()
        if live and int(served) != sampler.version:
            raise self._samplers.superseded(sampler, int(served))
        return fields

    async def _queued(
        self, sampler: LoopsSampler, body: dict[str, Any], on_state: OnQueueState
    ) -> Fields:
        """The completion that comes of a place in the queue. A call whose result the service loses
        is submitted anew; drawing twice harms nobody."""
        lost: OperationLost | None = None
        for _ in range(LOST_TRIES):
            call = replace(self._call(sampler, body), manners=QUEUE)
            read = accepted(call, sampler.facts.base_url)
            work = await self._service.call(
                call,
                read,
                on_wait=lambda words: on_state(QueueState.QUEUE_STATE_PAUSED_CAPACITY, words),
            )
            on_state(QueueState.QUEUE_STATE_ACTIVE, "")
            try:
                return await self._operations.result(work, lambda fields: fields, lambda: None)
            except OperationLost as error:
                lost = error
            except asyncio.CancelledError:
                self._cancel(work)
                raise
            except GatewayError as error:
                if error.kind is Kind.UNAVAILABLE:
                    # Given up here; there it may still be waiting for its turn.
                    self._cancel(work)
                raise
        assert lost is not None
        raise lost.error

    def _cancel(self, work: Accepted) -> None:
        """Nobody waits for a call any more."""
        cancel = Call(
            f"cancelling {work.operation_id}",
            f"{work.url}/cancel",
            headers=work.headers,
            within=CANCEL_TIMEOUT,
        )
        self._errands.run(self._service.quietly(cancel), cancel.operation)

    def _call(self, sampler: LoopsSampler, body: dict[str, Any]) -> Call:
        settings = self._service.settings
        return Call(
            f"sample of {sampler.facts.sampler_id}",
            f"{sampler.facts.base_url}/sample",
            body,
            headers={**sampler.headers, "idempotency-key": str(uuid.uuid4())},
            within=settings.submit_timeout,
            busy_patience=settings.operation_time,
        )


def _prompt_length(request: SampleRequest) -> int:
    """How many tokens a prompt has, those that its images are expected to take included."""
    return sum(
        len(chunk.encoded_text.tokens) // 4 or chunk.image.expected_tokens
        for chunk in request.prompt.chunks
    )


def _numbers(request: SampleRequest, max_tokens: int) -> int:
    """Roughly how many numbers an answer can have."""
    drawn = (request.num_samples or 1) * max_tokens
    if request.prompt_logprobs or request.topk_prompt_logprobs:
        drawn += _prompt_length(request) * (1 + request.topk_prompt_logprobs)
    return drawn


def _text_alone(request: SampleRequest) -> IntArray | None:
    """The prompt's tokens; None if it has an image."""
    if any(chunk.WhichOneof("chunk") != "encoded_text" for chunk in request.prompt.chunks):
        return None
    return prompt_tokens(request).astype(np.int64)


def _unwatched(state: QueueState.ValueType, reason: str) -> None:
    """For calls whose queue nobody asks after."""
