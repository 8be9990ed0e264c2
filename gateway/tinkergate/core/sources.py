"""What a sample or score request is to run on."""

from __future__ import annotations

from dataclasses import dataclass

from tinkergate.core.checkpoint_registry import CheckpointRegistry
from tinkergate.core.ids import session_of
from tinkergate.core.router import Route, Router
from tinkergate.core.samplers import Samplers
from tinkergate.core.validation.sampling import check_source
from tinkergate.v1 import SampleRequest, ScoreRequest


@dataclass(frozen=True)
class Source:
    """Where a request goes."""

    route: Route
    session_id: str
    """The session whose sampler it is; empty for a base model or a checkpoint."""


class Sources:
    """Finds the source that a request names."""

    def __init__(self, router: Router, samplers: Samplers, registry: CheckpointRegistry) -> None:
        self._router = router
        self._samplers = samplers
        self._registry = registry

    async def find(self, request: SampleRequest | ScoreRequest) -> Source:
        """The source. Raises INVALID, NOT_FOUND or UNSUPPORTED."""
        check_source(request)
        which = request.WhichOneof("source")
        if which == "sampler_id":
            entry = await self._samplers.require(request.sampler_id)
            return Source(entry.route, session_of(request.sampler_id))
        if which == "base_model":
            route = await self._router.route_to_sample(request.base_model, request.backend)
            return Source(route, "")
        checkpoint = self._registry.require(request.model_path).message
        route = await self._router.route_to_sample(checkpoint.base_model, checkpoint.backend)
        return Source(route, "")


def name_as_backend_does(request: SampleRequest | ScoreRequest, route: Route) -> None:
    """Replace the name that the caller has for a base model by the backend's own."""
    if request.WhichOneof("source") == "base_model":
        request.base_model = route.upstream_name
