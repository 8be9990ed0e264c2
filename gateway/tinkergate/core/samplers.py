"""Samplers: frozen weights, ready to sample."""

from __future__ import annotations

from tinkergate.v1 import (
    CreateSamplerRequest,
    CreateSamplerResponse,
    GetSamplerRequest,
    GetSamplerResponse,
)


class Samplers:
    """Samplers: frozen weights, ready to sample."""

    async def create(self, request: CreateSamplerRequest) -> CreateSamplerResponse:
        """Answer CreateSampler."""
        raise NotImplementedError

    async def get(self, request: GetSamplerRequest) -> GetSamplerResponse:
        """Answer GetSampler."""
        raise NotImplementedError
