"""OperationService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    CancelOperationRequest,
    CancelOperationResponse,
    GetOperationRequest,
    GetOperationResponse,
    ListOperationsRequest,
    ListOperationsResponse,
    OperationServiceServicer,
    WaitOperationRequest,
    WaitOperationResponse,
)

MAX_ANSWER_TIME = 1.0
"""Seconds kept back from a waiting call's deadline, so that its answer still gets there; half of
what is left if that is less."""


class OperationServicer(OperationServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._operations = gateway.operations

    async def GetOperation(
        self, request: GetOperationRequest, context: Context
    ) -> GetOperationResponse:
        """Answer GetOperation."""
        return await self._operations.get(request)

    async def WaitOperation(
        self, request: WaitOperationRequest, context: Context
    ) -> WaitOperationResponse:
        """Answer WaitOperation before the call's deadline: to a waiting caller it is news, not an
        error, that the operation is not done yet."""
        return await self._operations.wait(request, wait_limit(context.time_remaining()))

    async def ListOperations(
        self, request: ListOperationsRequest, context: Context
    ) -> ListOperationsResponse:
        """Answer ListOperations."""
        return await self._operations.list(request)

    async def CancelOperation(
        self, request: CancelOperationRequest, context: Context
    ) -> CancelOperationResponse:
        """Answer CancelOperation."""
        return await self._operations.cancel(request)


def wait_limit(remaining: float | None) -> float | None:
    """How many seconds to wait in a call that has `remaining` left; None for no deadline."""
    if remaining is None:
        return None
    return max(0.0, remaining - min(MAX_ANSWER_TIME, remaining / 2))
