"""CapabilitiesService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    CapabilitiesServiceServicer,
    GetCapabilitiesRequest,
    GetCapabilitiesResponse,
)


class CapabilitiesServicer(CapabilitiesServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def GetCapabilities(
        self, request: GetCapabilitiesRequest, context: Context
    ) -> GetCapabilitiesResponse:
        """Answer GetCapabilities."""
        return await self._gateway.capabilities()
