"""ModelService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    CreateModelRequest,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    ModelServiceServicer,
    Operation,
    UnloadModelRequest,
)


class ModelServicer(ModelServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._models = gateway.models

    async def CreateModel(self, request: CreateModelRequest, context: Context) -> Operation:
        """Answer CreateModel."""
        return await self._models.create(request)

    async def GetModel(self, request: GetModelRequest, context: Context) -> GetModelResponse:
        """Answer GetModel."""
        return await self._models.get(request)

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        """Answer ListModels."""
        return await self._models.list(request)

    async def UnloadModel(self, request: UnloadModelRequest, context: Context) -> Operation:
        """Answer UnloadModel."""
        return await self._models.unload(request)
