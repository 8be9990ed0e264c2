"""Sample calls (wire section 6)."""

from __future__ import annotations

import asyncio

from tinkergate.backends.base import OnQueueState, SampleEvents
from tinkergate.backends.errands import Errands
from tinkergate.backends.tinker.futures import Accepted, FutureLost, Futures, accepted
from tinkergate.backends.tinker.models import unnoticed
from tinkergate.backends.tinker.samplers import UpstreamSampler, UpstreamSamplers
from tinkergate.backends.tinker.service import Call, Service
from tinkergate.dialects.tinker.read_results import (
    is_protobuf,
    response_from_json,
    response_from_protobuf,
)
from tinkergate.dialects.tinker.write_requests import sample_json
from tinkergate.errors import GatewayError, Kind, unsupported
from tinkergate.http import Answer
from tinkergate.v1 import QueueState, SampleRequest, SampleResponse

LOST_TRIES = 3
"""How often a call is submitted whose result the service loses."""


class Drawing:
    """Draws sequences at the service."""

    def __init__(
        self, service: Service, futures: Futures, samplers: UpstreamSamplers, errands: Errands
    ) -> None:
        self._service = service
        self._futures = futures
        self._samplers = samplers
        self._errands = errands
        self._mint = service.settings.dialect == "mint"

    async def sample(self, request: SampleRequest, events: SampleEvents) -> SampleResponse:
        """Answer a sample call. Cancelling the task asks the service to stop."""
        self.check(request)
        sampler = await self._samplers.of(request)
        told = (QueueState.QUEUE_STATE_ACTIVE, "")

        def on_state(state: QueueState.ValueType, reason: str) -> None:
            nonlocal told
            if (state, reason) != told:
                told = (state, reason)
                events.on_queue_state(state, reason)

        return await self.draw(sampler, request, on_state)

    async def answer(self, request: SampleRequest) -> SampleResponse:
        """Answer a sample call that nobody watches."""
        return await self.draw(await self._samplers.of(request), request)

    def check(self, request: SampleRequest) -> None:
        """Raise UNSUPPORTED for what the dialect does not have."""
        if not self._mint:
            return
        for feature, asked in (
            ("topk_sample_logprobs", request.topk_sample_logprobs),
            ("target_prompt_logprobs", request.HasField("target_prompt_logprobs")),
            ("prompt_alt_tokens_k", request.prompt_alt_tokens_k),
            ("prompt_logprobs_last_n", request.HasField("prompt_logprobs_last_n")),
            ("record_stability_info", request.record_stability_info),
        ):
            if asked:
                raise unsupported(feature, self._service.name)

    async def draw(
        self,
        sampler: UpstreamSampler,
        request: SampleRequest,
        on_state: OnQueueState = unnoticed,
    ) -> SampleResponse:
        """What a call of a sampler answers. A call whose result the service loses is submitted
        anew under another number; drawing twice harms nobody."""
        remade = False
        lost: FutureLost | None = None
        for _ in range(LOST_TRIES):
            try:
                work = await self._submit(sampler, request)
            except GatewayError as error:
                if error.kind is not Kind.NOT_FOUND or remade:
                    raise
                remade = True
                if not await self._samplers.remake(sampler, request):
                    raise
                work = await self._submit(sampler, request)
            try:
                return await self._result(work, request, on_state)
            except FutureLost as error:
                lost = error
            except asyncio.CancelledError:
                if not self._mint:
                    call = Call("cancel_future", "cancel_future", {"request_id": work.request_id})
                    self._errands.run(self._service.quietly(call), "cancelling a sample call")
                raise
        assert lost is not None
        raise lost.error

    async def _submit(self, sampler: UpstreamSampler, request: SampleRequest) -> Accepted:
        body = sample_json(
            request, sampler.upstream_id, sampler.next_call(), all_fields=not self._mint
        )
        call = Call(
            f"asample of {sampler.upstream_id}",
            "asample",
            body,
            headers={"x-tinker-sampling-backpressure": "1"},
            busy_patience=self._service.settings.operation_time,
        )
        return await self._service.call(call, accepted(call, "Sample"))

    async def _result(
        self, work: Accepted, request: SampleRequest, on_state: OnQueueState
    ) -> SampleResponse:
        samples = request.num_samples or 1

        def read(answer: Answer) -> SampleResponse:
            if is_protobuf(answer.headers.get("content-type", "")):
                return response_from_protobuf(answer.body, samples)
            return response_from_json(answer.body, samples, request.topk_prompt_logprobs)

        return await self._futures.result(work, read, on_state=on_state, protobuf=not self._mint)
