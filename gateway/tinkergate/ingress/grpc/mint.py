"""MintService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    ActBatchRequest,
    ActBatchResponse,
    ActRequest,
    ActResponse,
    CloseActionSessionRequest,
    CloseActionSessionResponse,
    CreateActionSessionRequest,
    CreateActionSessionResponse,
    ForwardBackwardReverseKlRequest,
    InterpolateCheckpointsRequest,
    MintServiceServicer,
    Operation,
    VlaTrainStepRequest,
)


class MintServicer(MintServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._mint = gateway.mint

    async def ForwardBackwardReverseKl(
        self, request: ForwardBackwardReverseKlRequest, context: Context
    ) -> Operation:
        """Answer ForwardBackwardReverseKl."""
        return await self._mint.forward_backward_reverse_kl(request)

    async def InterpolateCheckpoints(
        self, request: InterpolateCheckpointsRequest, context: Context
    ) -> Operation:
        """Answer InterpolateCheckpoints."""
        return await self._mint.interpolate_checkpoints(request)

    async def VlaTrainStep(self, request: VlaTrainStepRequest, context: Context) -> Operation:
        """Answer VlaTrainStep."""
        return await self._mint.vla_train_step(request)

    async def CreateActionSession(
        self, request: CreateActionSessionRequest, context: Context
    ) -> CreateActionSessionResponse:
        """Answer CreateActionSession."""
        return await self._mint.create_action_session(request)

    async def Act(self, request: ActRequest, context: Context) -> ActResponse:
        """Answer Act."""
        return await self._mint.act(request)

    async def ActBatch(self, request: ActBatchRequest, context: Context) -> ActBatchResponse:
        """Answer ActBatch."""
        return await self._mint.act_batch(request)

    async def CloseActionSession(
        self, request: CloseActionSessionRequest, context: Context
    ) -> CloseActionSessionResponse:
        """Answer CloseActionSession."""
        return await self._mint.close_action_session(request)
