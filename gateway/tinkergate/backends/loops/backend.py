"""Baseten Loops as a backend."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from tinkergate.backends.base import (
    ModelFacts,
    ModelSpec,
    OnStart,
    SampleEvents,
    SamplerSpec,
    SavedCheckpoint,
    Submission,
    TrainingRequest,
)
from tinkergate.backends.errands import Errands
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.loops.capabilities import capabilities
from tinkergate.backends.loops.checkpoint_files import UpstreamFiles
from tinkergate.backends.loops.control import Control
from tinkergate.backends.loops.models import UpstreamModels
from tinkergate.backends.loops.operations import Operations
from tinkergate.backends.loops.readiness import Readiness
from tinkergate.backends.loops.samplers import UpstreamSamplers
from tinkergate.backends.loops.sampling import Drawing
from tinkergate.backends.loops.service import Service
from tinkergate.backends.loops.settings import LoopsSettings
from tinkergate.backends.loops.trainers import Trainers
from tinkergate.backends.loops.training import Training
from tinkergate.backends.scoring import Scoring
from tinkergate.errors import unsupported
from tinkergate.http import HttpClient
from tinkergate.v1 import (
    BackendCapabilities,
    Checkpoint,
    CheckpointFile,
    InterpolateCheckpointsRequest,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    SupportedModel,
)

_log = logging.getLogger(__name__)

MODELS_TIME = 15.0
"""How long the service's base models are asked for, in seconds."""
CLOSING_TIME = 10.0
"""How long the service gets to hear that trainers and samplers are done with, in seconds."""


class LoopsBackend:
    """Trains, samples and scores at Baseten Loops; see `tinkergate.backends.base.Backend`."""

    def __init__(self, settings: LoopsSettings) -> None:
        """Nothing is sent before `start`. Raises OSError or ValueError for a `ca_file` or a
        `proxy` that cannot be used."""
        self._settings = settings
        self._client = HttpClient(
            connect_timeout=settings.connect_timeout,
            ca_file=settings.ca_file,
            proxy=settings.proxy,
        )
        service = Service(settings, self._client)
        self._errands = errands = Errands()
        self._known = known = KnownCheckpoints()
        self._control = control = Control(service)
        operations = Operations(service)
        readiness = Readiness(service, control)
        self._trainers = trainers = Trainers(service, control, readiness, errands)
        self._models = UpstreamModels(service, control, trainers, operations, known)
        self._samplers = UpstreamSamplers(service, control, trainers, known, errands)
        self._training = Training(service, operations, self._models, self._samplers, known)
        self._drawing = Drawing(
            service, operations, self._samplers, readiness, errands, self._context_of
        )
        self._scoring = Scoring(settings.name, self._drawing.answer, settings.max_concurrent_scores)
        self._files = UpstreamFiles(service, control, self._client, known)
        self._max_context: dict[str, int] = {}
        """Of the base models, as far as the service told them."""

    @property
    def name(self) -> str:
        """The name to choose it by."""
        return self._settings.name

    async def start(self, known: Sequence[Checkpoint] = ()) -> None:
        """Take up what is known of the checkpoints there, and see whether the service takes the
        key. Raises GatewayError if it does not, cannot be reached, or does not know the team; may
        be called again then."""
        self._known.take_up(known)
        await self._control.open()

    async def close(self) -> None:
        """Stop all trainers and samplers there, and close the connections."""
        self._samplers.close()
        self._trainers.close()
        await self._errands.finish(CLOSING_TIME)
        await self._client.close()

    def capabilities(self) -> BackendCapabilities:
        """What it can do."""
        return capabilities(self._settings)

    async def models(self) -> Sequence[SupportedModel]:
        """The base models: those of the settings, with what the service tells of them, else all
        that the service tells."""
        patience = min(MODELS_TIME, self._settings.retry_time)
        told = {model.name: model for model in await self._control.models(patience)}
        listed = []
        for name in self._settings.models or tuple(told):
            model = told.get(name) or SupportedModel(
                name=name, trainable=True, sampleable=True, tokenizer_id=name
            )
            model.backend = self.name
            asked = self._settings.max_seq_len
            if asked is not None and (not model.max_context_length):
                model.max_context_length = asked
            elif asked is not None:
                model.max_context_length = min(asked, model.max_context_length)
            self._max_context[name] = model.max_context_length
            listed.append(model)
        return listed

    def _context_of(self, base_model: str) -> int:
        return self._max_context.get(base_model, self._settings.max_seq_len or 0)

    async def create_model(self, spec: ModelSpec) -> ModelFacts:
        """Make a model, ready to train when this returns, which takes minutes."""
        return await self._models.create(spec, self._context_of(spec.base_model))

    async def unload_model(self, model_id: str) -> None:
        """Let go of a model after what was submitted before."""
        await self._models.unload(model_id)

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        """Take a request."""
        return await self._training.submit(request, on_start)

    async def create_sampler(self, spec: SamplerSpec) -> None:
        """Make a sampler. One that is dedicated gets ready while the first call waits."""
        await self._samplers.create(spec)

    async def close_sampler(self, sampler_id: str) -> None:
        """Let go of a sampler."""
        self._samplers.close_sampler(sampler_id)

    async def sample(self, request: SampleRequest, events: SampleEvents) -> SampleResponse:
        """Draw sequences. The parts are told at the end only."""
        return await self._drawing.sample(request, events)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Score sequences."""
        return await self._scoring.score(request)

    async def checkpoints(self) -> Sequence[Checkpoint]:
        """None that the gateway does not know: what is at the service under other names than the
        gateway gave belongs to programs that use it directly."""
        return ()

    async def delete_checkpoint(self, path: str) -> None:
        """Forget a checkpoint: Loops has no way to remove one, so it stays there, and the log says
        so."""
        if path in self._known:
            _log.info(
                "backend %s: %s is forgotten; at Loops %s stays, which has no way to remove it",
                self.name,
                path,
                self._known.find(path).upstream_path,
            )
        self._known.forget(path)
        self._samplers.forget(path)
        self._files.forget(path)

    async def import_checkpoint(
        self, checkpoint: Checkpoint, files: Mapping[str, Path]
    ) -> SavedCheckpoint:
        """Refused: the service takes no adapters in."""
        raise unsupported("importing of adapters", self.name)

    async def copy_checkpoint(self, source: str, checkpoint: Checkpoint) -> SavedCheckpoint:
        """Refused: the service has no such thing."""
        raise unsupported("copying of checkpoints", self.name)

    async def interpolate_checkpoints(
        self, request: InterpolateCheckpointsRequest, checkpoint: Checkpoint
    ) -> SavedCheckpoint:
        """Refused: the service has no such thing."""
        raise unsupported("interpolation of checkpoints", self.name)

    async def checkpoint_files(self, path: str) -> Sequence[CheckpointFile]:
        """The files of a checkpoint, by name."""
        return await self._files.files(path)

    def read_checkpoint_file(self, path: str, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of one file."""
        return self._files.read(path, name, offset)
