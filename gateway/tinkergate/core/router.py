"""Choosing the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tinkergate.backends.base import Backend
from tinkergate.core.validation.facts import Abilities, Facts
from tinkergate.errors import GatewayError, Kind, unsupported
from tinkergate.v1 import BackendKind, ErrorReason, SupportedModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """A base model on the backend that was chosen for it."""

    backend: Backend
    model: SupportedModel
    facts: Facts


Rule = Callable[[Sequence[Route]], Route]
"""Chooses one of the routes that could serve a request; there is at least one."""


def first_configured(routes: Sequence[Route]) -> Route:
    """The rule unless another is set: backends are tried in the order they were configured in."""
    return routes[0]


class Router:
    """Knows the backends and their base models."""

    def __init__(self, backends: Sequence[Backend], rule: Rule = first_configured) -> None:
        """`backends` in the order of preference, each with a name of its own."""
        self._backends: Mapping[str, Backend] = {backend.name: backend for backend in backends}
        if len(self._backends) != len(backends):
            raise ValueError("two backends have the same name")
        self._abilities = {backend.name: Abilities(backend.capabilities()) for backend in backends}
        self._rule = rule
        self._routes: list[Route] = []

    @property
    def backends(self) -> Sequence[Backend]:
        """All backends, in the order of preference."""
        return list(self._backends.values())

    @property
    def models(self) -> Sequence[SupportedModel]:
        """All base models as of the last `refresh`."""
        return [route.model for route in self._routes]

    async def refresh(self) -> None:
        """Ask the backends for their base models. One that does not answer keeps those it had."""
        routes: list[Route] = []
        for name, backend in self._backends.items():
            try:
                models = await backend.models()
            except GatewayError:
                _log.warning("backend %s does not tell its models", name, exc_info=True)
                routes += [route for route in self._routes if route.backend is backend]
                continue
            abilities = self._abilities[name]
            routes += [Route(backend, model, Facts.of(model, abilities)) for model in models]
        self._routes = routes

    def backend(self, name: str) -> Backend:
        """The backend of that name. Raises NOT_FOUND."""
        backend = self._backends.get(name)
        if backend is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_BACKEND_NOT_FOUND,
                f"there is no backend {name!r}; there are: {', '.join(self._backends)}",
            )
        return backend

    def holds_its_own_checkpoints(self, backend: Backend) -> bool:
        """Whether what the backend lists is all there is of its checkpoints."""
        kind = self._abilities[backend.name].capabilities.kind
        return kind == BackendKind.BACKEND_KIND_LOCAL

    async def route(self, base_model: str, backend: str = "") -> Route:
        """Where `base_model` (a name or an alias) is to go: to the backend that is named, else by
        the rule. Raises NOT_FOUND."""
        if backend:
            self.backend(backend)
        found = self._matching(base_model, backend)
        if not found:
            # A model may have been added since.
            await self.refresh()
            found = self._matching(base_model, backend)
        if not found:
            names = sorted({r.model.name for r in self._routes if backend in ("", r.backend.name)})
            where = f"backend {backend!r}" if backend else "any backend"
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
                f"there is no base model {base_model!r} on {where}; there are: "
                + (", ".join(names) or "none"),
            )
        return self._rule(found)

    def _matching(self, base_model: str, backend: str) -> list[Route]:
        return [
            route
            for route in self._routes
            if backend in ("", route.backend.name)
            and (base_model == route.model.name or base_model in route.model.aliases)
        ]

    async def route_to_train(self, base_model: str, backend: str = "") -> Route:
        """As `route`, for training. Raises UNSUPPORTED if the model cannot be trained there."""
        route = await self.route(base_model, backend)
        if not route.model.trainable:
            raise unsupported(f"training of {route.model.name!r}", route.backend.name)
        return route

    async def route_to_sample(self, base_model: str, backend: str = "") -> Route:
        """As `route`, for sampling and scoring. Raises UNSUPPORTED if that cannot be done there."""
        route = await self.route(base_model, backend)
        if not route.model.sampleable:
            raise unsupported(f"sampling of {route.model.name!r}", route.backend.name)
        return route
