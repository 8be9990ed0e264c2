"""Models: creating, looking up, unloading."""

from __future__ import annotations

from tinkergate.v1 import (
    CreateModelRequest,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    Operation,
    UnloadModelRequest,
)


class Models:
    """Models: creating, looking up, unloading."""

    async def create(self, request: CreateModelRequest) -> Operation:
        """Answer CreateModel."""
        raise NotImplementedError

    async def get(self, request: GetModelRequest) -> GetModelResponse:
        """Answer GetModel."""
        raise NotImplementedError

    async def list(self, request: ListModelsRequest) -> ListModelsResponse:
        """Answer ListModels."""
        raise NotImplementedError

    async def unload(self, request: UnloadModelRequest) -> Operation:
        """Answer UnloadModel."""
        raise NotImplementedError
