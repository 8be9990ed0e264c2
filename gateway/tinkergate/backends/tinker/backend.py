"""A service that speaks Tinker's REST dialect as a backend: Tinker, or MinT."""

from __future__ import annotations

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
from tinkergate.backends.scoring import Scoring
from tinkergate.backends.tinker.actions import ActionSessions
from tinkergate.backends.tinker.capabilities import capabilities
from tinkergate.backends.tinker.checkpoint_files import UpstreamFiles
from tinkergate.backends.tinker.checkpoints import UpstreamCheckpoints
from tinkergate.backends.tinker.futures import Futures
from tinkergate.backends.tinker.models import UpstreamModels
from tinkergate.backends.tinker.samplers import UpstreamSamplers
from tinkergate.backends.tinker.sampling import Drawing
from tinkergate.backends.tinker.service import Call, Service
from tinkergate.backends.tinker.sessions import UpstreamSessions
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.backends.tinker.training import Training
from tinkergate.dialects.tinker.read_results import models_from_json
from tinkergate.errors import unsupported
from tinkergate.http import HttpClient
from tinkergate.v1 import (
    ActBatchRequest,
    ActBatchResponse,
    ActRequest,
    ActResponse,
    BackendCapabilities,
    Checkpoint,
    CheckpointFile,
    CreateActionSessionRequest,
    InterpolateCheckpointsRequest,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    SupportedModel,
)

MODELS_TIME = 15.0
"""How long the service's base models are asked for, in seconds."""
CLOSING_TIME = 10.0
"""How long the service gets to hear that sessions and models are done with, in seconds."""


class TinkerBackend:
    """Trains, samples and scores at a service; see `tinkergate.backends.base.Backend` and
    `ActionBackend`."""

    def __init__(self, settings: TinkerSettings) -> None:
        """Nothing is sent before `start`. Raises OSError or ValueError for a `ca_file` or a
        `proxy` that cannot be used."""
        self._settings = settings
        self._client = HttpClient(
            connect_timeout=settings.connect_timeout,
            ca_file=settings.ca_file,
            proxy=settings.proxy,
        )
        self._service = service = Service(settings, self._client)
        self._errands = errands = Errands()
        self._known = known = KnownCheckpoints()
        self._sessions = sessions = UpstreamSessions(service, errands)
        futures = Futures(service)
        self._models = UpstreamModels(service, futures, sessions, known, errands)
        self._samplers = UpstreamSamplers(service, sessions, known)
        self._checkpoints = UpstreamCheckpoints(service, futures, sessions, known)
        self._training = Training(
            service,
            futures,
            self._models,
            self._samplers,
            known,
            errands,
            self._checkpoints.remove,
        )
        self._drawing = Drawing(service, futures, self._samplers, errands)
        self._scoring = Scoring(settings.name, self._drawing.answer, settings.max_concurrent_scores)
        self._files = UpstreamFiles(service, self._client, known)
        self._actions = ActionSessions(service, sessions, known)
        self._max_context: dict[str, int] = {}
        """Of the base models, as far as the service told them."""

    @property
    def name(self) -> str:
        """The name to choose it by."""
        return self._settings.name

    async def start(self, known: Sequence[Checkpoint] = ()) -> None:
        """Take up what is known of the checkpoints there, and ask for the service's configuration.
        Raises GatewayError if the service cannot be reached or does not take the key; may be
        called again then."""
        self._known.take_up(known)
        await self._service.open()

    async def close(self) -> None:
        """Finish all sessions there, and close the connections."""
        self._sessions.close()
        await self._errands.finish(CLOSING_TIME)
        await self._files.close()
        await self._client.close()

    def capabilities(self) -> BackendCapabilities:
        """What it can do."""
        return capabilities(self._settings)

    async def models(self) -> Sequence[SupportedModel]:
        """The base models: those of the settings, else those that the service tells."""
        call = Call(
            "get_server_capabilities",
            "get_server_capabilities",
            method="GET",
            patience=min(MODELS_TIME, self._settings.retry_time),
        )
        if self._settings.models:
            told = {}
        else:
            listed_there = await self._service.call(
                call, lambda answer: models_from_json(answer.body)
            )
            told = {model.name: model for model in listed_there}
        names = self._settings.models or tuple(told)
        listed = []
        for name in names:
            model = told.get(name) or SupportedModel(
                name=name, trainable=True, sampleable=True, tokenizer_id=name
            )
            model.backend = self.name
            self._max_context[name] = model.max_context_length
            listed.append(model)
        return listed

    async def create_model(self, spec: ModelSpec) -> ModelFacts:
        """Make a model, ready to train when this returns."""
        return await self._models.create(spec, self._max_context.get(spec.base_model, 0))

    async def unload_model(self, model_id: str) -> None:
        """Free a model after what was submitted before."""
        await self._models.unload(model_id)

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        """Take a request."""
        return await self._training.submit(request, on_start)

    async def create_sampler(self, spec: SamplerSpec) -> None:
        """Make a sampler."""
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
        """Remove a checkpoint for good, where the service can do that; else forget it."""
        upstream_path = self._known.find(path).upstream_path
        await self._checkpoints.remove(upstream_path)
        self._known.forget(path)
        self._samplers.forget(path)
        self._files.forget(path)

    async def import_checkpoint(
        self, checkpoint: Checkpoint, files: Mapping[str, Path]
    ) -> SavedCheckpoint:
        """Refused: the service takes no adapters in."""
        raise unsupported("importing of adapters", self.name)

    async def copy_checkpoint(self, source: str, checkpoint: Checkpoint) -> SavedCheckpoint:
        """Make another checkpoint of the same weights."""
        return await self._checkpoints.copy(source, checkpoint)

    async def interpolate_checkpoints(
        self, request: InterpolateCheckpointsRequest, checkpoint: Checkpoint
    ) -> SavedCheckpoint:
        """Make a checkpoint of the weighted sum of others."""
        return await self._checkpoints.interpolate(request, checkpoint)

    async def checkpoint_files(self, path: str) -> Sequence[CheckpointFile]:
        """The files of a checkpoint, by name."""
        return await self._files.files(path)

    def read_checkpoint_file(self, path: str, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of one file."""
        return self._files.read(path, name, offset)

    async def create_action_session(self, request: CreateActionSessionRequest) -> str:
        """Open an action session."""
        return await self._actions.create(request)

    async def act(self, request: ActRequest) -> ActResponse:
        """What to do for one observation."""
        return await self._actions.act(request)

    async def act_batch(self, request: ActBatchRequest) -> ActBatchResponse:
        """What to do for each of several observations."""
        return await self._actions.act_batch(request)

    async def close_action_session(self, action_session_id: str) -> None:
        """End an action session."""
        await self._actions.close_session(action_session_id)
