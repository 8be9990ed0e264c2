"""The routes by which people and tools look after runs, checkpoints and sessions (wire section 15).

Those that concern the vendor's own accounts are not here.
"""

from __future__ import annotations

from starlette.routing import Route

from tinkergate.ingress.tinker_rest.console import (
    archives,
    checkpoints,
    runs,
    search,
    sessions,
    weights,
)
from tinkergate.ingress.tinker_rest.context import Context


def routes(context: Context) -> list[Route]:
    """All of them. The app leaves out what MinT has not, where it is to be MinT."""
    # Archives go first: whatever checkpoint id is none ends in the routes of checkpoints.
    rooms = (archives, checkpoints, runs, sessions, search, weights)
    return [route for room in rooms for route in room.routes(context)]
