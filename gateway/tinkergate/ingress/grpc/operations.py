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
        """Answer WaitOperation, before the call's own deadline: to a caller that waits it is news,
        not a failure, that the operation is not done yet."""
        return await self._operations.wait(request, context.time_remaining())

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
