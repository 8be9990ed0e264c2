"""The control plane: what makes, lists and ends things (wire sections 4 and 9)."""

from __future__ import annotations

from starlette.routing import Route

from tinkergate.ingress.loops_rest.context import Context
from tinkergate.ingress.loops_rest.control import (
    checkpoints,
    deployments,
    runs,
    samplers,
    service,
    unoffered,
)


def routes(context: Context) -> list[Route]:
    """The routes."""
    return [
        *service.routes(context),
        *runs.routes(context),
        *samplers.routes(context),
        *checkpoints.routes(context),
        *deployments.routes(context),
        *unoffered.routes(context),
    ]
