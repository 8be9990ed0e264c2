"""TrainingService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    Operation,
    OptimStepRequest,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    TrainingServiceServicer,
)


class TrainingServicer(TrainingServiceServicer):
    """Hands the calls to the core, which gives them their place in the model's order."""

    def __init__(self, gateway: Gateway) -> None:
        self._training = gateway.training

    async def Forward(self, request: ForwardRequest, context: Context) -> Operation:
        """Answer Forward."""
        return await self._training.submit(request)

    async def ForwardBackward(self, request: ForwardBackwardRequest, context: Context) -> Operation:
        """Answer ForwardBackward."""
        return await self._training.submit(request)

    async def OptimStep(self, request: OptimStepRequest, context: Context) -> Operation:
        """Answer OptimStep."""
        return await self._training.submit(request)

    async def SaveState(self, request: SaveStateRequest, context: Context) -> Operation:
        """Answer SaveState."""
        return await self._training.submit(request)

    async def LoadState(self, request: LoadStateRequest, context: Context) -> Operation:
        """Answer LoadState."""
        return await self._training.submit(request)

    async def SaveWeightsForSampler(
        self, request: SaveWeightsForSamplerRequest, context: Context
    ) -> Operation:
        """Answer SaveWeightsForSampler."""
        return await self._training.submit(request)

    async def SaveWeightsExternal(
        self, request: SaveWeightsExternalRequest, context: Context
    ) -> Operation:
        """Answer SaveWeightsExternal."""
        return await self._training.submit(request)
