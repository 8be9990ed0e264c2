"""The embedded engine as a backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig

from tinkergate.backends.base import (
    LoadedState,
    ModelFacts,
    ModelSpec,
    OnStart,
    SampleEvents,
    SamplerReady,
    SamplerSpec,
    SavedCheckpoint,
    Submission,
    TrainingRequest,
    TrainingResult,
)
from tinkergate.backends.local import convert, folders, mint
from tinkergate.backends.local.folders import ADAMW, EXTERNAL_WEIGHTS, SAMPLER_WEIGHTS, WEIGHTS
from tinkergate.backends.local.sampler_shelf import SamplerShelf
from tinkergate.backends.local.snapshot_cache import SnapshotCache
from tinkergate.backends.local.stored_checkpoints import StoredCheckpoints
from tinkergate.engine import checkpoint
from tinkergate.engine.bases import LoadedBase
from tinkergate.engine.engine import Engine
from tinkergate.engine.models import BASE_MODEL
from tinkergate.engine.sampling import PromptAnswers, SampledTokens, SamplingEvents
from tinkergate.engine.scheduler import Handle
from tinkergate.engine.snapshots import Snapshot
from tinkergate.errors import unsupported
from tinkergate.v1 import (
    BackendCapabilities,
    BackendKind,
    Checkpoint,
    CheckpointFile,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    InterpolateCheckpointsRequest,
    LoadStateRequest,
    Normalization,
    OptimStepRequest,
    SampleRequest,
    SampleResponse,
    SamplerWeightsKind,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    ScoreRequest,
    ScoreResponse,
    SupportedModel,
)

T = TypeVar("T")

PIPELINE_DEPTH = 64
"""Operations of one model that wait in the engine. It takes them one after another; more than one
spares it the way through the gateway between two."""

SNAPSHOTS_KEPT = 8
"""How many of the checkpoints that were sampled with by their path stay in memory, and how many
samplers' weights."""


@dataclass(frozen=True)
class ServedModel:
    """A base model to serve."""

    name: str
    folder: Path
    aliases: tuple[str, ...] = ()


class LocalBackend:
    """Trains, samples and scores in this process; see `tinkergate.backends.base.Backend`."""

    def __init__(
        self,
        engine: Engine,
        models: Sequence[ServedModel],
        data_dir: Path,
        *,
        name: str = "local",
        snapshots_kept: int = SNAPSHOTS_KEPT,
    ) -> None:
        """`engine` has the folders of `models`, and is closed with the backend. Checkpoints go
        into the folder `checkpoints` of `data_dir`."""
        self._name = name
        self._engine = engine
        self._served = tuple(models)
        self._stored = StoredCheckpoints(engine, data_dir / "checkpoints")
        self._samplers = SamplerShelf(engine, data_dir / "samplers", snapshots_kept)
        self._checkpoints = SnapshotCache(self._read_snapshot, snapshots_kept)
        self._models: list[SupportedModel] = []

    @property
    def name(self) -> str:
        """The name to choose it by."""
        return self._name

    async def start(self, known: Sequence[Checkpoint] = ()) -> None:
        """Clear up after a killed process, and look at the models."""
        await self._stored.start()
        await self._samplers.start()
        self._models = [
            await asyncio.to_thread(_describe, model, self._name) for model in self._served
        ]

    async def close(self) -> None:
        """End the engine."""
        await self._samplers.close()
        await asyncio.to_thread(self._engine.close)

    def capabilities(self) -> BackendCapabilities:
        """What it can do."""
        return BackendCapabilities(
            name=self._name,
            kind=BackendKind.BACKEND_KIND_LOCAL,
            losses=convert.loss_capabilities(),
            optimizers=[ADAMW],
            pipeline_depth=PIPELINE_DEPTH,
            reverse_kl=True,
            checkpoint_interpolation=True,
            rollout_correction=True,
            external_weights=True,
            checkpoint_files=True,
            checkpoint_import=True,
            token_normalization=True,
        )

    async def models(self) -> Sequence[SupportedModel]:
        """The base models that it serves."""
        return self._models

    async def create_model(self, spec: ModelSpec) -> ModelFacts:
        """Make a model, ready to train when this returns."""
        if (kind := spec.optimizer_config.type or ADAMW) != ADAMW:
            raise unsupported(f"the optimizer {kind!r}", self._name)
        loaded = await self._loaded(spec.base_model)
        correction = mint.correction_from_message(spec.rollout_correction)
        if spec.checkpoint is None:
            lora = convert.spec_from_lora(spec.lora_config)
            handle = self._engine.models.create(spec.model_id, loaded, lora, correction=correction)
        else:
            handle = self._engine.models.create_from(
                spec.model_id,
                loaded,
                self._stored.folder(spec.checkpoint.path),
                with_optimizer=spec.checkpoint.with_optimizer,
                correction=correction,
            )
        try:
            made = await asyncio.wrap_future(handle.future)
        except asyncio.CancelledError:
            handle.cancel()
            self._engine.models.unload(spec.model_id)
            raise
        return ModelFacts(
            lora_config=convert.lora_from_spec(made.spec),
            tokenizer_id=spec.base_model,
            arch=loaded.base.arch,
            vocab_size=loaded.base.vocab_size,
            max_context_length=loaded.base.max_context,
            optimizer_steps=made.optimizer_steps,
        )

    async def unload_model(self, model_id: str) -> None:
        """Free a model after what was submitted before."""
        handle = self._engine.models.unload(model_id)
        if handle is not None:
            await asyncio.wrap_future(handle.future)

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        """Take a request."""
        loop = asyncio.get_running_loop()

        def begun() -> None:
            loop.call_soon_threadsafe(on_start)

        match request:
            case ForwardRequest() | ForwardBackwardRequest():
                return self._forward_backward(request, begun)
            case ForwardBackwardReverseKlRequest():
                return await self._reverse_kl(request, begun)
            case OptimStepRequest():
                return self._optim_step(request, begun)
            case SaveStateRequest():
                return self._save(request, WEIGHTS, begun)
            case LoadStateRequest():
                return self._load_state(request, begun)
            case SaveWeightsForSamplerRequest():
                if request.kind == SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_INFLIGHT:
                    raise unsupported("samplers that follow training", self._name)
                if request.name:
                    return self._save(request, SAMPLER_WEIGHTS, begun)
                return self._freeze(request, begun)
            case SaveWeightsExternalRequest():
                return self._save(request, EXTERNAL_WEIGHTS, begun)
            case _:
                raise unsupported(type(request).__name__, self._name)

    def _forward_backward(
        self, request: ForwardRequest | ForwardBackwardRequest, begun: Callable[[], None]
    ) -> Submission:
        handle = self._engine.models.forward_backward(
            request.model_id,
            [convert.example_from_datum(datum) for datum in request.data],
            request.loss_fn,
            convert.settings_from_config(request.loss_fn_config),
            backward=isinstance(request, ForwardBackwardRequest),
            per_token=isinstance(request, ForwardBackwardRequest)
            and request.normalization == Normalization.NORMALIZATION_PER_TOKEN,
            on_start=begun,
        )
        return _submission(handle, convert.output_from_result)

    async def _reverse_kl(
        self, request: ForwardBackwardReverseKlRequest, begun: Callable[[], None]
    ) -> Submission:
        if request.reference_model_path.startswith("tinker://"):
            reference = await self._checkpoints.get(request.reference_model_path)
        else:
            reference = Snapshot(await self._loaded(request.reference_model_path), None)
        try:
            handle = self._engine.models.reverse_kl(
                request.model_id,
                mint.comparisons_from_data(request.data),
                reference,
                request.temperature if request.HasField("temperature") else 1.0,
                on_start=begun,
            )
        finally:
            reference.let_go()
        return _submission(handle, mint.output_from_reverse_kl)

    def _optim_step(self, request: OptimStepRequest, begun: Callable[[], None]) -> Submission:
        if request.WhichOneof("optimizer") == "other":
            raise unsupported(f"the optimizer {request.other.type!r}", self._name)
        handle = self._engine.models.optim_step(
            request.model_id, convert.adam_from_params(request.adam), on_start=begun
        )
        return _submission(handle, convert.step_from_metrics)

    def _save(
        self,
        request: SaveStateRequest | SaveWeightsForSamplerRequest | SaveWeightsExternalRequest,
        kind: str,
        begun: Callable[[], None],
    ) -> Submission:
        path = folders.CheckpointPath(request.model_id, kind, request.name)
        now = time.time_ns()
        has_optimizer = kind == WEIGHTS
        handle = self._engine.models.save(
            request.model_id,
            self._stored.folder(str(path)),
            with_optimizer=has_optimizer,
            overwrite=request.overwrite,
            metadata=folders.notes(
                created=now,
                expires=now + request.ttl.ToNanoseconds() if request.HasField("ttl") else None,
                user_metadata=request.user_metadata,
            ),
            on_start=begun,
        )

        def saved(size: int) -> TrainingResult:
            self._checkpoints.drop(str(path))
            return SavedCheckpoint(size, has_optimizer)

        return _submission(handle, saved)

    def _load_state(self, request: LoadStateRequest, begun: Callable[[], None]) -> Submission:
        handle = self._engine.models.load_state(
            request.model_id,
            self._stored.folder(request.path),
            with_optimizer=request.with_optimizer,
            on_start=begun,
        )
        return _submission(handle, LoadedState)

    def _freeze(
        self, request: SaveWeightsForSamplerRequest, begun: Callable[[], None]
    ) -> Submission:
        session_id = request.model_id.rsplit(":", 2)[0]
        sampler_id = f"{session_id}:sample:{request.sampler_seq_id}"
        handle = self._engine.models.freeze(request.model_id, on_start=begun)

        def ready(snapshot: Snapshot) -> TrainingResult:
            self._samplers.put(sampler_id, snapshot)
            return SamplerReady()

        return _submission(handle, ready)

    async def create_sampler(self, spec: SamplerSpec) -> None:
        """Make a sampler."""
        if spec.model_path:
            snapshot = await self._checkpoints.get(spec.model_path)
        else:
            snapshot = Snapshot(await self._loaded(spec.base_model), None)
        self._samplers.put(spec.sampler_id, snapshot)

    async def close_sampler(self, sampler_id: str) -> None:
        """Free a sampler once the calls that are running have ended."""
        self._samplers.drop(sampler_id)

    async def sample(self, request: SampleRequest, events: SampleEvents) -> SampleResponse:
        """Draw sequences."""
        if request.record_stability_info:
            raise unsupported("recording of stability information", self._name)
        loop = asyncio.get_running_loop()

        def on_prompt(answers: PromptAnswers) -> None:
            prompt = convert.response_from_answers(answers, request)
            loop.call_soon_threadsafe(events.on_prompt, prompt)

        def on_sequence(index: int, sampled: SampledTokens) -> None:
            sequence = convert.sequence_from_sampled(sampled)
            loop.call_soon_threadsafe(events.on_sequence, index, sequence)

        wanted = convert.sampling_from_request(request)
        snapshot = await self._source(request)
        try:
            handle = snapshot.sample(wanted, SamplingEvents(on_prompt, on_sequence))
            sampled = await _outcome(handle)
        finally:
            snapshot.let_go()
        response = convert.response_from_answers(sampled.prompt, request)
        response.sequences.extend(map(convert.sequence_from_sampled, sampled.sequences))
        return response

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Score sequences."""
        wanted = convert.scoring_from_request(request)
        snapshot = await self._source(request)
        try:
            scored = await _outcome(snapshot.score(wanted))
        finally:
            snapshot.let_go()
        return convert.response_from_scored(scored, wanted.lengths)

    async def _source(self, request: SampleRequest | ScoreRequest) -> Snapshot:
        """The weights that a request names, held for the caller."""
        match request.WhichOneof("source"):
            case "model_path":
                return await self._checkpoints.get(request.model_path)
            case "base_model":
                return Snapshot(await self._loaded(request.base_model), None)
            case _:
                return await self._samplers.hold(request.sampler_id)

    async def checkpoints(self) -> Sequence[Checkpoint]:
        """What is on disk."""
        return await self._stored.list()

    async def delete_checkpoint(self, path: str) -> None:
        """Remove a checkpoint for good. Samplers made of it go on."""
        self._checkpoints.drop(path)
        await self._stored.remove(path)

    async def import_checkpoint(
        self, checkpoint: Checkpoint, files: Mapping[str, Path]
    ) -> SavedCheckpoint:
        """Take in a PEFT adapter."""
        loaded = await self._loaded(checkpoint.base_model)
        return await self._stored.take_in(loaded, checkpoint, files)

    async def copy_checkpoint(self, source: str, checkpoint: Checkpoint) -> SavedCheckpoint:
        """Make another checkpoint of the same weights and the same optimizer state."""
        return await self._stored.copy(source, checkpoint)

    async def interpolate_checkpoints(
        self, request: InterpolateCheckpointsRequest, checkpoint: Checkpoint
    ) -> SavedCheckpoint:
        """Make a checkpoint of the weighted sum of others."""
        loaded = await self._loaded(checkpoint.base_model)
        return await self._stored.interpolate(loaded, request, checkpoint)

    async def checkpoint_files(self, path: str) -> Sequence[CheckpointFile]:
        """The files of a checkpoint, by name."""
        return await self._stored.files(path)

    def read_checkpoint_file(self, path: str, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of one file."""
        return self._stored.read(path, name, offset)

    async def _loaded(self, base_model: str) -> LoadedBase:
        return await asyncio.shield(asyncio.wrap_future(self._engine.bases.load(base_model)))

    async def _read_snapshot(self, path: str) -> Snapshot:
        folder = self._stored.folder(path)
        summary = await asyncio.to_thread(checkpoint.summarize, folder)
        loaded = await self._loaded(str(summary.metadata.get(BASE_MODEL)))
        return await asyncio.wrap_future(self._engine.open_snapshot(loaded, folder).future)


def _describe(model: ServedModel, backend: str) -> SupportedModel:
    """What a base model's configuration says. Its weights are not loaded."""
    config: Any = AutoConfig.from_pretrained(model.folder, local_files_only=True)
    text = config.get_text_config()
    return SupportedModel(
        name=model.name,
        backend=backend,
        max_context_length=text.max_position_embeddings,
        trainable=True,
        sampleable=True,
        tokenizer_id=model.name,
        vocab_size=text.vocab_size,
        aliases=model.aliases,
    )


def _submission(handle: Handle[T], convert_result: Callable[[T], TrainingResult]) -> Submission:
    async def result() -> TrainingResult:
        return convert_result(await asyncio.wrap_future(handle.future))

    outcome: Coroutine[Any, Any, TrainingResult] = result()
    return Submission(outcome, cancel=handle.cancel)


async def _outcome(handle: Handle[T]) -> T:
    """What comes of work that a cancelled caller no longer wants."""
    try:
        return await asyncio.wrap_future(handle.future)
    except asyncio.CancelledError:
        handle.cancel()
        raise
