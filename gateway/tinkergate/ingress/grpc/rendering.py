"""RenderService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    DecodeRequest,
    DecodeResponse,
    EncodeRequest,
    EncodeResponse,
    ParseResponseRequest,
    ParseResponseResponse,
    RenderPromptRequest,
    RenderPromptResponse,
    RenderServiceServicer,
    RenderTrainingRequest,
    RenderTrainingResponse,
)


class RenderServicer(RenderServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._rendering = gateway.rendering

    async def RenderPrompt(
        self, request: RenderPromptRequest, context: Context
    ) -> RenderPromptResponse:
        """Answer RenderPrompt."""
        return await self._rendering.render_prompt(request)

    async def RenderTraining(
        self, request: RenderTrainingRequest, context: Context
    ) -> RenderTrainingResponse:
        """Answer RenderTraining."""
        return await self._rendering.render_training(request)

    async def ParseResponse(
        self, request: ParseResponseRequest, context: Context
    ) -> ParseResponseResponse:
        """Answer ParseResponse."""
        return await self._rendering.parse_response(request)

    async def Encode(self, request: EncodeRequest, context: Context) -> EncodeResponse:
        """Answer Encode."""
        return await self._rendering.encode(request)

    async def Decode(self, request: DecodeRequest, context: Context) -> DecodeResponse:
        """Answer Decode."""
        return await self._rendering.decode(request)
