"""ScoringService."""

from __future__ import annotations

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import ScoreRequest, ScoreResponse, ScoringServiceServicer


class ScoringServicer(ScoringServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._scoring = gateway.scoring

    async def Score(self, request: ScoreRequest, context: Context) -> ScoreResponse:
        """Answer Score."""
        return await self._scoring.score(request)
