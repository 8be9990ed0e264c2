"""CheckpointService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tinkergate.core.gateway import Gateway
from tinkergate.errors import invalid_field
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    CheckpointServiceServicer,
    DeleteCheckpointRequest,
    DeleteCheckpointResponse,
    FilePiece,
    GetCheckpointRequest,
    GetCheckpointResponse,
    ImportCheckpointRequest,
    ImportCheckpointResponse,
    ImportHeader,
    ListCheckpointsRequest,
    ListCheckpointsResponse,
)


class CheckpointServicer(CheckpointServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._checkpoints = gateway.checkpoints

    async def ListCheckpoints(
        self, request: ListCheckpointsRequest, context: Context
    ) -> ListCheckpointsResponse:
        """Answer ListCheckpoints."""
        return await self._checkpoints.list(request)

    async def GetCheckpoint(
        self, request: GetCheckpointRequest, context: Context
    ) -> GetCheckpointResponse:
        """Answer GetCheckpoint."""
        return await self._checkpoints.get(request)

    async def DeleteCheckpoint(
        self, request: DeleteCheckpointRequest, context: Context
    ) -> DeleteCheckpointResponse:
        """Answer DeleteCheckpoint."""
        return await self._checkpoints.delete(request)

    async def ImportCheckpoint(
        self, request: AsyncIterator[ImportCheckpointRequest], context: Context
    ) -> ImportCheckpointResponse:
        """Answer ImportCheckpoint."""
        header = await _header(request)
        return await self._checkpoints.import_(header, _pieces(request))


async def _header(messages: AsyncIterator[ImportCheckpointRequest]) -> ImportHeader:
    async for message in messages:
        if message.WhichOneof("piece") != "header":
            raise invalid_field("header", "missing: the first message must be the header")
        return message.header
    raise invalid_field("header", "missing: the stream is empty")


async def _pieces(messages: AsyncIterator[ImportCheckpointRequest]) -> AsyncIterator[FilePiece]:
    async for message in messages:
        if message.WhichOneof("piece") != "file":
            raise invalid_field("file", "missing: every message after the header must be a piece")
        yield message.file
