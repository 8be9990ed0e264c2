"""ScoringService: logprobs of given sequences."""

from __future__ import annotations

import asyncio

from tinkergate.core.admission import Admission, queue_full
from tinkergate.core.faults import as_gateway_error
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.core.sources import Sources, name_as_backend_does
from tinkergate.core.validation.scoring import check_score
from tinkergate.errors import GatewayError
from tinkergate.v1 import ScoreRequest, ScoreResponse


class Scoring:
    """The RPC of ScoringService."""

    def __init__(
        self,
        settings: CoreSettings,
        admission: Admission,
        sessions: Sessions,
        sources: Sources,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._sessions = sessions
        self._sources = sources
        self._running: set[asyncio.Task[ScoreResponse]] = set()
        self._running_bytes = 0
        self._stopped: GatewayError | None = None

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer Score. Cancelling the awaiting task stops the work. Raises EXHAUSTED if too much
        is being scored already."""
        self._admission.check()
        source = await self._sources.find(request)
        check_score(request, source.route.facts, self._settings)
        name_as_backend_does(request, source.route)
        size = len(request.tokens.data)
        self._check_room(size)
        scores = source.route.backend.score(request)
        task = asyncio.ensure_future(scores)
        self._running.add(task)
        self._running_bytes += size
        try:
            with self._sessions.calling(source.session_id):
                return await task
        except asyncio.CancelledError:
            if self._stopped is not None:
                raise self._stopped from None
            raise
        except Exception as error:
            raise as_gateway_error(error, "scoring") from None
        finally:
            self._running.discard(task)
            self._running_bytes -= size

    async def idle(self) -> None:
        """Wait until nothing is being scored."""
        while self._running:
            await asyncio.wait(self._running)

    def stop_all(self, error: GatewayError) -> None:
        """The gateway stops: end all calls with `error`."""
        self._stopped = error
        for task in self._running:
            task.cancel()

    def _check_room(self, size: int) -> None:
        running = len(self._running)
        limit = self._settings.max_running_score_bytes
        too_large = running and self._running_bytes + size > limit
        if too_large or running >= self._settings.max_running_scores:
            raise queue_full(
                f"{running} score calls of {self._running_bytes} bytes are running; try again "
                "when some are done",
                self._settings.queue_retry_delay,
            )
