"""The training requests of a model: checked, given a place, and handed to the backend in order."""

from __future__ import annotations

from tinkergate.backends.base import TrainingRequest
from tinkergate.v1 import Operation


class Training:
    """The six training RPCs."""

    async def submit(self, request: TrainingRequest) -> Operation:
        """Accept a request: valid, and its place in the model's order fixed."""
        raise NotImplementedError
