"""MintService: what MinT adds to the operations of Tinker."""

from __future__ import annotations

from tinkergate.core.action_sessions import ActionSessions
from tinkergate.core.interpolations import Interpolations
from tinkergate.core.training import Training
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
    Operation,
    VlaTrainStepRequest,
)


class Mint:
    """The RPCs of MintService. Those of a model take their turn in its order like any other."""

    def __init__(
        self, training: Training, interpolations: Interpolations, action_sessions: ActionSessions
    ) -> None:
        self._training = training
        self._interpolations = interpolations
        self._action_sessions = action_sessions

    async def forward_backward_reverse_kl(
        self, request: ForwardBackwardReverseKlRequest
    ) -> Operation:
        """Answer ForwardBackwardReverseKl."""
        return await self._training.submit(request)

    async def vla_train_step(self, request: VlaTrainStepRequest) -> Operation:
        """Answer VlaTrainStep."""
        return await self._training.submit(request)

    async def interpolate_checkpoints(self, request: InterpolateCheckpointsRequest) -> Operation:
        """Answer InterpolateCheckpoints."""
        return await self._interpolations.submit(request)

    async def create_action_session(
        self, request: CreateActionSessionRequest
    ) -> CreateActionSessionResponse:
        """Answer CreateActionSession."""
        return await self._action_sessions.create(request)

    async def act(self, request: ActRequest) -> ActResponse:
        """Answer Act."""
        return await self._action_sessions.act(request)

    async def act_batch(self, request: ActBatchRequest) -> ActBatchResponse:
        """Answer ActBatch."""
        return await self._action_sessions.act_batch(request)

    async def close_action_session(
        self, request: CloseActionSessionRequest
    ) -> CloseActionSessionResponse:
        """Answer CloseActionSession."""
        return await self._action_sessions.close(request)
