"""Scoring of given sequences."""

from __future__ import annotations

from tinkergate.v1 import (
    ScoreRequest,
    ScoreResponse,
)


class Scoring:
    """Scoring of given sequences."""

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer Score."""
        raise NotImplementedError
