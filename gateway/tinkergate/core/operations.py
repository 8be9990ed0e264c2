"""Operations: what was submitted, what became of it, and who waits for it."""

from __future__ import annotations

from tinkergate.v1 import (
    CancelOperationRequest,
    CancelOperationResponse,
    GetOperationRequest,
    GetOperationResponse,
    ListOperationsRequest,
    ListOperationsResponse,
    WaitOperationRequest,
    WaitOperationResponse,
)


class Operations:
    """The RPCs of OperationService."""

    async def get(self, request: GetOperationRequest) -> GetOperationResponse:
        """Answer GetOperation."""
        raise NotImplementedError

    async def wait(
        self, request: WaitOperationRequest, time_limit: float | None = None
    ) -> WaitOperationResponse:
        """Answer WaitOperation. `time_limit` is what the call's own deadline leaves, in seconds;
        None means that it has none."""
        raise NotImplementedError

    async def list(self, request: ListOperationsRequest) -> ListOperationsResponse:
        """Answer ListOperations."""
        raise NotImplementedError

    async def cancel(self, request: CancelOperationRequest) -> CancelOperationResponse:
        """Answer CancelOperation."""
        raise NotImplementedError
