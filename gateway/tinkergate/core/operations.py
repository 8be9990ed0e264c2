"""OperationService: looking at operations, waiting for them, cancelling them."""

from __future__ import annotations

from tinkergate.core.ids import session_of
from tinkergate.core.operation_record import Record
from tinkergate.core.operation_table import OperationTable
from tinkergate.core.paging import page
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import invalid_field
from tinkergate.v1 import (
    CancelOperationRequest,
    CancelOperationResponse,
    GetOperationRequest,
    GetOperationResponse,
    ListOperationsRequest,
    ListOperationsResponse,
    OperationState,
    WaitOperationRequest,
    WaitOperationResponse,
)

ANSWER_MARGIN = 0.25
"""Seconds before a call's deadline at which it is answered, so that the answer still arrives."""


class Operations:
    """The RPCs of OperationService."""

    def __init__(self, settings: CoreSettings, table: OperationTable, sessions: Sessions) -> None:
        self._settings = settings
        self._table = table
        self._sessions = sessions

    async def get(self, request: GetOperationRequest) -> GetOperationResponse:
        """Answer GetOperation. Raises NOT_FOUND."""
        record = self._table.require(request.name)
        self._sessions.heard(session_of(record.model_id))
        answer = await self._table.answer(record)
        return GetOperationResponse(operation=answer.operation)

    async def wait(
        self, request: WaitOperationRequest, time_limit: float | None = None
    ) -> WaitOperationResponse:
        """Answer WaitOperation. `time_limit` is what the call's own deadline leaves, in seconds
        (None if it has none); the answer is made a little before. Raises NOT_FOUND."""
        limit = self._settings.max_wait
        if request.HasField("timeout"):
            asked = request.timeout.seconds + request.timeout.nanos * 1e-9
            if asked < 0:
                raise invalid_field("timeout", f"is {asked} s; must not be negative")
            limit = min(limit, asked)
        if time_limit is not None:
            limit = min(limit, time_limit - min(ANSWER_MARGIN, time_limit / 4))
        record = self._table.require(request.name)
        with self._sessions.calling(session_of(record.model_id)):
            return await self._wait(record, limit)

    async def _wait(self, record: Record, limit: float) -> WaitOperationResponse:
        answer = await record.ended(limit)
        return answer or await self._table.answer(record)

    async def list(self, request: ListOperationsRequest) -> ListOperationsResponse:
        """Answer ListOperations."""
        chosen, token = page(
            (
                record
                for record in self._table.newest_first()
                if (not request.model_id or record.model_id == request.model_id)
                and request.state in (OperationState.OPERATION_STATE_UNSPECIFIED, record.state)
            ),
            request.page_size,
            request.page_token,
        )
        response = ListOperationsResponse(next_page_token=token)
        for record in chosen:
            record.fill(response.operations.add())
        return response

    async def cancel(self, request: CancelOperationRequest) -> CancelOperationResponse:
        """Answer CancelOperation, once it is known what became of the operation, or after as long
        as a wait may take. Raises NOT_FOUND."""
        record = self._table.require(request.name)
        if not record.done and record.cancel is not None and record.cancel():
            await self._wait(record, self._settings.max_wait)
        answer = await self._table.answer(record)
        return CancelOperationResponse(operation=answer.operation)
