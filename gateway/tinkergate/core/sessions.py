"""Sessions: who owns models and samplers, and for how long."""

from __future__ import annotations

from tinkergate.v1 import (
    CreateSessionRequest,
    CreateSessionResponse,
    FinishSessionRequest,
    FinishSessionResponse,
    GetSessionRequest,
    GetSessionResponse,
    HeartbeatSessionRequest,
    HeartbeatSessionResponse,
    ListSessionsRequest,
    ListSessionsResponse,
)


class Sessions:
    """Sessions: who owns models and samplers, and for how long."""

    async def create(self, request: CreateSessionRequest) -> CreateSessionResponse:
        """Answer CreateSession."""
        raise NotImplementedError

    async def get(self, request: GetSessionRequest) -> GetSessionResponse:
        """Answer GetSession."""
        raise NotImplementedError

    async def list(self, request: ListSessionsRequest) -> ListSessionsResponse:
        """Answer ListSessions."""
        raise NotImplementedError

    async def heartbeat(self, request: HeartbeatSessionRequest) -> HeartbeatSessionResponse:
        """Answer HeartbeatSession."""
        raise NotImplementedError

    async def finish(self, request: FinishSessionRequest) -> FinishSessionResponse:
        """Answer FinishSession."""
        raise NotImplementedError
