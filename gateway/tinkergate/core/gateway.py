"""The gateway put together from its parts, started and stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tinkergate import __version__
from tinkergate.backends.base import Backend
from tinkergate.core.action_sessions import ActionSessions
from tinkergate.core.admission import Admission, shutting_down
from tinkergate.core.backends import AttachedBackend, BackendOpening
from tinkergate.core.background import Background
from tinkergate.core.checkpoint_copies import CheckpointCopies
from tinkergate.core.checkpoint_files import CheckpointFiles
from tinkergate.core.checkpoint_registry import CheckpointRegistry
from tinkergate.core.checkpoints import Checkpoints
from tinkergate.core.clock import Clock
from tinkergate.core.interpolations import Interpolations
from tinkergate.core.mint import Mint
from tinkergate.core.model_book import ModelBook
from tinkergate.core.model_names import ModelName
from tinkergate.core.models import Models
from tinkergate.core.operation_table import OperationTable
from tinkergate.core.operations import Operations
from tinkergate.core.outcomes import Outcomes
from tinkergate.core.rendering import Rendering
from tinkergate.core.router import Router
from tinkergate.core.sample_futures import SampleFutures
from tinkergate.core.samplers import Samplers
from tinkergate.core.sampling import Sampling
from tinkergate.core.scoring import Scoring
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.core.sources import Sources
from tinkergate.core.training import Training
from tinkergate.core.training_runs import TrainingRuns
from tinkergate.errors import GatewayError, Kind
from tinkergate.rendering import Tokenizers
from tinkergate.store import Store
from tinkergate.v1 import Checkpoint, ErrorReason, GetCapabilitiesResponse, Limits

STOP_SECONDS = 5.0
"""How long work that was asked to stop is waited for."""

_log = logging.getLogger(__name__)


class Gateway:
    """What every door speaks to: parts with one method an RPC, which take the request message,
    answer the response message and raise nothing but `GatewayError`. All methods run on the event
    loop that `start` ran on. Requests are handed over: the caller does not use them afterwards.
    Responses are shared: the caller does not change them."""

    def __init__(
        self,
        backends: Sequence[Backend | BackendOpening],
        store: Store,
        settings: CoreSettings | None = None,
        default_model: str = "",
        clock: Clock | None = None,
        *,
        names: Sequence[ModelName] = (),
        default_backend: str = "",
        tokenizers: Tokenizers | None = None,
    ) -> None:
        """`backends` in the order of preference, `names` what the configuration calls their base
        models; for the defaults see `Router`; `tokenizers` those to render with, none if absent.
        The gateway opens and closes backends and store."""
        settings = settings or CoreSettings()
        clock = clock or Clock()
        self._settings = settings
        self._store = store
        self._background = Background()
        self._reaper: asyncio.Task[None] | None = None
        self._admission = Admission(settings, store)
        self._router = Router(
            backends, names=names, default_backend=default_backend, default_model=default_model
        )
        self._table = OperationTable(settings, store, clock)
        self._book = ModelBook(store)
        self._registry = CheckpointRegistry(store, clock)

        self.sessions = Sessions(settings, store, clock, self._admission)
        self.models = Models(
            settings,
            clock,
            self._admission,
            self._router,
            self.sessions,
            self._table,
            self._book,
            self._registry,
            self._background,
        )
        self.samplers = Samplers(
            self._admission, self._router, self.sessions, self._registry, self._background
        )
        self.training = Training(
            clock,
            self._admission,
            self.sessions,
            self._book,
            self._table,
            Outcomes(self._book, self.samplers, self._registry),
        )
        self.operations = Operations(settings, self._table, self.sessions)
        sources = Sources(self._router, self.samplers, self._registry)
        self.sampling = Sampling(settings, clock, self._admission, self.sessions, sources)
        self.sample_futures = SampleFutures(settings, clock, self.sampling, self.sessions)
        self.scoring = Scoring(settings, self._admission, self.sessions, sources)
        self.rendering = Rendering(
            settings, self._admission, self._router, tokenizers or Tokenizers()
        )
        self.checkpoints = Checkpoints(
            settings, clock, self._admission, self._router, self.sessions, self._registry
        )
        self.mint = Mint(
            self.training,
            Interpolations(
                clock,
                self._admission,
                self._router,
                self.sessions,
                self._table,
                self._registry,
                self._background,
            ),
            ActionSessions(
                self._admission, self._router, self.sessions, self._registry, self._background
            ),
        )
        self.checkpoint_copies = CheckpointCopies(
            clock, self._admission, self._router, self.sessions, self._book, self._registry
        )
        self.checkpoint_files = CheckpointFiles(
            self._admission, self._router, self.sessions, self._registry
        )
        self.training_runs = TrainingRuns(self.sessions, self._book, self._registry)

    async def start(self) -> None:
        """Open the store, start the backends, and take up what an earlier run left: its sessions
        have expired, its models are lost, its unfinished operations have failed, and its results
        and checkpoints are there. A backend that cannot be used is tried again in the background.
        If it fails, whatever was opened is closed again."""
        await asyncio.to_thread(self._store.open)
        try:
            await self._restore()
            await self._router.backends.start(self._registry.of_backend, self._reconcile)
        except BaseException:
            await asyncio.to_thread(self._store.close)
            raise
        self._reaper = asyncio.create_task(self._reap_for_ever(), name="reaper")

    def _reconcile(self, backend: AttachedBackend, held: Sequence[Checkpoint]) -> None:
        """A backend has been started, and tells the checkpoints that it holds."""
        named = self._router.publicly_named(backend.name, held)
        # What is on this machine's disk is all there is of the engine's checkpoints.
        self._registry.reconcile(backend.name, named, complete=backend.is_local)

    async def _restore(self) -> None:
        contents = await asyncio.to_thread(self._store.load)
        self.sessions.restore(contents.sessions)
        self._book.restore(contents.models)
        for row in contents.models:
            self.sessions.note_model(row.session_id, row.model_id)
        self._registry.restore(contents.checkpoints)
        self._table.restore(contents.operations, _lost())

    async def close(self, grace: float) -> None:
        """Refuse new work, give what is running `grace` seconds to end, stop the rest, then let go
        of everything. Waiting, looking and heartbeats go on until the end."""
        self._admission.close()
        self.models.fail_parked(shutting_down())
        await self._drain(grace)
        self.models.abandon_all(shutting_down())
        self.sampling.stop_all(shutting_down())
        self.scoring.stop_all(shutting_down())
        self.checkpoint_files.stop_all(shutting_down())
        await self._drain(STOP_SECONDS)
        self._table.fail_unfinished(shutting_down())
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait([self._reaper])
        self.rendering.close()
        await self._router.backends.close()
        await asyncio.to_thread(self._store.close)

    async def _drain(self, seconds: float) -> None:
        """Wait until nothing is running, at most `seconds`."""
        work = (
            self.models.idle(),
            self.sampling.idle(),
            self.scoring.idle(),
            self.checkpoint_files.idle(),
            self._background.join(),
        )
        tasks = [asyncio.ensure_future(each) for each in work]
        _, unfinished = await asyncio.wait(tasks, timeout=seconds)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)

    async def capabilities(self) -> GetCapabilitiesResponse:
        """What the backends do, which base models they serve, and the gateway's bounds."""
        await self._router.refresh()
        settings = self._settings
        limits = Limits(
            max_message_bytes=settings.max_message_bytes,
            chunk_datums=settings.chunk_datums,
            chunk_bytes=settings.chunk_bytes,
            max_queued_operations=settings.max_queued_operations,
            result_byte_budget=settings.result_byte_budget,
        )
        for field in ("result_retention", "max_wait", "gap_timeout"):
            getattr(limits, field).FromNanoseconds(round(getattr(settings, field) * 1e9))
        return GetCapabilitiesResponse(
            gateway_version=__version__,
            backends=self._router.capabilities(),
            models=self._router.models,
            default_model=self._router.default_model,
            limits=limits,
        )

    async def reap(self) -> None:
        """End and forget whatever has been kept long enough."""
        self.sessions.reap()
        self._table.reap()
        self.sampling.reap()
        self.sample_futures.reap()
        await self.checkpoints.reap()

    async def _reap_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.reap_interval)
            try:
                await self.reap()
            except Exception:
                _log.exception("reaping failed")


def _lost() -> GatewayError:
    """What becomes of operations that an earlier run of the gateway did not finish. Sending them
    again cannot help: their model is gone."""
    return GatewayError(
        Kind.PRECONDITION,
        ErrorReason.ERROR_REASON_MODEL_NOT_READY,
        "the gateway was restarted before the operation was done, and its model is gone; create a "
        "model from the last checkpoint and go on from there",
        metadata={"state": "lost"},
    )
