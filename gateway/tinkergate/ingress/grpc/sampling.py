"""SamplingService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    CreateSamplerRequest,
    CreateSamplerResponse,
    GetSamplerRequest,
    GetSamplerResponse,
    SampleRequest,
    SampleResponse,
    SamplingServiceServicer,
    StreamSampleRequest,
    StreamSampleResponse,
)


class SamplingServicer(SamplingServiceServicer):
    """Hands the calls to the core. A caller that goes away cancels the handler, and with it the
    work."""

    def __init__(self, gateway: Gateway) -> None:
        self._samplers = gateway.samplers
        self._sampling = gateway.sampling

    async def CreateSampler(
        self, request: CreateSamplerRequest, context: Context
    ) -> CreateSamplerResponse:
        """Answer CreateSampler."""
        return await self._samplers.create(request)

    async def GetSampler(self, request: GetSamplerRequest, context: Context) -> GetSamplerResponse:
        """Answer GetSampler."""
        return await self._samplers.get(request)

    async def Sample(self, request: SampleRequest, context: Context) -> SampleResponse:
        """Answer Sample."""
        return await self._sampling.sample(request)

    async def StreamSample(
        self, request: StreamSampleRequest, context: Context
    ) -> AsyncIterator[StreamSampleResponse]:
        """Answer StreamSample."""
        # A generator that is merely dropped ends when it is collected, not now.
        async with aclosing(self._sampling.stream(request.request)) as events:
            async for event in events:
                yield event
