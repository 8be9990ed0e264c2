"""The registry of what was saved."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tinkergate.v1 import (
    DeleteCheckpointRequest,
    DeleteCheckpointResponse,
    FilePiece,
    GetCheckpointRequest,
    GetCheckpointResponse,
    ImportCheckpointResponse,
    ImportHeader,
    ListCheckpointsRequest,
    ListCheckpointsResponse,
)


class Checkpoints:
    """The RPCs of CheckpointService."""

    async def list(self, request: ListCheckpointsRequest) -> ListCheckpointsResponse:
        """Answer ListCheckpoints."""
        raise NotImplementedError

    async def get(self, request: GetCheckpointRequest) -> GetCheckpointResponse:
        """Answer GetCheckpoint."""
        raise NotImplementedError

    async def delete(self, request: DeleteCheckpointRequest) -> DeleteCheckpointResponse:
        """Answer DeleteCheckpoint."""
        raise NotImplementedError

    async def import_(
        self, header: ImportHeader, pieces: AsyncIterator[FilePiece]
    ) -> ImportCheckpointResponse:
        """Answer ImportCheckpoint."""
        raise NotImplementedError
