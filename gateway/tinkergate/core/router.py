"""Choosing the backend.

A call goes to the backend that its request names, else to the one that the configuration gives its
base model to, else by the rule: to the default backend if that serves the base model, else to the
first that does. Rules are where weights, failover and tenants will find their place: a `Rule` is
asked with all routes that could serve, and answers one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinkergate.backends.base import Backend
from tinkergate.core.backends import MODELS_LIFETIME, BackendOpening, Backends
from tinkergate.core.model_names import ModelName, ModelNames
from tinkergate.core.validation.facts import Facts
from tinkergate.errors import GatewayError, Kind, unsupported
from tinkergate.v1 import BackendCapabilities, Checkpoint, ErrorReason, SupportedModel

MISS_LIFETIME = 1.0
"""How old, in seconds, the lists of base models may be in which a name is not found: what was added
since is found, and a flood of unknown names does not become one of calls to the backends."""


@dataclass(frozen=True)
class Route:
    """A base model on the backend that was chosen for it."""

    backend: Backend
    model: SupportedModel
    """As callers see it."""
    facts: Facts

    @property
    def upstream_name(self) -> str:
        """What the backend calls the base model."""
        return self.model.upstream_name or self.model.name


Rule = Callable[[Sequence[Route]], Route]
"""Chooses one of the routes that could serve a request; there is at least one."""


def prefer(backend: str) -> Rule:
    """The rule unless another is set: the route of that backend if there is one, else the first,
    in the order that the backends were configured in."""

    def choose(routes: Sequence[Route]) -> Route:
        return next((route for route in routes if route.backend.name == backend), routes[0])

    return choose


class Router:
    """Knows the backends and their base models."""

    def __init__(
        self,
        backends: Sequence[Backend | BackendOpening],
        *,
        names: Sequence[ModelName] = (),
        default_backend: str = "",
        default_model: str = "",
        rule: Rule | None = None,
        miss_lifetime: float = MISS_LIFETIME,
    ) -> None:
        """`backends` in the order of preference, each with a name of its own; the first is the
        default one unless `default_backend` says otherwise. `names` are base models as the
        configuration names them, `default_model` the one that clients may offer first. Raises
        ValueError if two backends or two base models have a name in common."""
        self.backends = Backends(backends, self._rebuild)
        """All backends."""
        self._names = ModelNames(names)
        self._default_backend = default_backend or next(iter(self.backends.names), "")
        self._default_model = default_model
        self._rule = rule or prefer(self._default_backend)
        self._miss_lifetime = miss_lifetime
        self._routes: list[Route] = []

    @property
    def models(self) -> Sequence[SupportedModel]:
        """All base models as of the last `refresh`, by their public names."""
        return [route.model for route in self._routes]

    @property
    def default_model(self) -> str:
        """The base model that clients may offer first: the one that was set, else the first of the
        default backend; empty if there is none."""
        on_default = [
            route.model
            for route in self._routes
            if route.backend.name == self._default_backend
            and self._default_model in ("", route.model.name, route.upstream_name)
        ]
        return on_default[0].name if on_default else self._default_model

    def capabilities(self) -> Sequence[BackendCapabilities]:
        """What the backends can do, those included that cannot be used now."""
        return [each.capabilities() for each in self.backends.all]

    async def refresh(self, max_age: float = MODELS_LIFETIME) -> None:
        """Have lists of base models that are at most so many seconds old."""
        await self.backends.refresh(max_age)

    def _rebuild(self) -> None:
        """Take up what the backends told last."""
        self._routes = [
            Route(each.backend, model, Facts.of(model, each.abilities))
            for each in self.backends.all
            if each.backend is not None and each.abilities is not None
            for model in self._names.applied(each.name, each.models)
        ]

    def backend(self, name: str) -> Backend:
        """The backend of that name. Raises NOT_FOUND, or UNAVAILABLE if it cannot be used yet."""
        found = self.backends.find(name)
        if found.backend is None or found.abilities is None:
            raise found.unavailable()
        return found.backend

    def publicly_named(self, backend: str, held: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
        """Checkpoints as a backend lists them, with the public names of their base models."""
        public = {
            name: route.model.name
            for route in self._routes
            if route.backend.name == backend
            for name in (route.upstream_name, route.model.name)
        }
        renamed = []
        for each in held:
            checkpoint = Checkpoint()
            checkpoint.CopyFrom(each)
            checkpoint.base_model = public.get(each.base_model, each.base_model)
            renamed.append(checkpoint)
        return renamed

    async def route(self, base_model: str, backend: str = "") -> Route:
        """Where `base_model` (a public name or an alias) is to go; where a backend is named, its
        own names will do too. Raises NOT_FOUND, or UNAVAILABLE if the backend that it belongs to
        cannot be used yet."""
        if not backend and (named := self._names.find(base_model)) is not None:
            backend = named.backend
        if backend:
            self.backend(backend)
        found = self._matching(base_model, backend)
        if not found:
            # A model may have been added since.
            await self.refresh(self._miss_lifetime)
            found = self._matching(base_model, backend)
        if not found:
            raise self._not_found(base_model, backend)
        return self._rule(found)

    def _matching(self, base_model: str, backend: str) -> list[Route]:
        if backend:
            held = [route for route in self._routes if route.backend.name == backend]
            own = [route for route in held if route.upstream_name == base_model]
            return [route for route in held if _is_called(route, base_model)] or own
        return [route for route in self._routes if _is_called(route, base_model)]

    def _not_found(self, base_model: str, backend: str) -> GatewayError:
        if not backend:
            for each in self.backends.all:
                if each.abilities is None:
                    # It may be the one that serves the model.
                    return each.unavailable()
        names = sorted({r.model.name for r in self._routes if backend in ("", r.backend.name)})
        where = f"backend {backend!r}" if backend else "any backend"
        return GatewayError(
            Kind.NOT_FOUND,
            ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
            f"there is no base model {base_model!r} on {where}; there are: "
            + (", ".join(names) or "none"),
        )

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


def _is_called(route: Route, name: str) -> bool:
    return name == route.model.name or name in route.model.aliases
