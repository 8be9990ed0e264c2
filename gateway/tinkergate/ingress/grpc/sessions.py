"""SessionService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
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
    SessionServiceServicer,
    SetSessionProjectRequest,
    SetSessionProjectResponse,
)


class SessionServicer(SessionServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._sessions = gateway.sessions

    async def CreateSession(
        self, request: CreateSessionRequest, context: Context
    ) -> CreateSessionResponse:
        """Answer CreateSession."""
        return await self._sessions.create(request)

    async def GetSession(self, request: GetSessionRequest, context: Context) -> GetSessionResponse:
        """Answer GetSession."""
        return await self._sessions.get(request)

    async def ListSessions(
        self, request: ListSessionsRequest, context: Context
    ) -> ListSessionsResponse:
        """Answer ListSessions."""
        return await self._sessions.list(request)

    async def HeartbeatSession(
        self, request: HeartbeatSessionRequest, context: Context
    ) -> HeartbeatSessionResponse:
        """Answer HeartbeatSession."""
        return await self._sessions.heartbeat(request)

    async def FinishSession(
        self, request: FinishSessionRequest, context: Context
    ) -> FinishSessionResponse:
        """Answer FinishSession."""
        return await self._sessions.finish(request)

    async def SetSessionProject(
        self, request: SetSessionProjectRequest, context: Context
    ) -> SetSessionProjectResponse:
        """Answer SetSessionProject."""
        return await self._sessions.set_project(request)
