"""What the core adds to a training request before the backend sees it, and what it makes of the
backend's result."""

from __future__ import annotations

from google.protobuf.message import Message

from tinkergate.backends.base import (
    LoadedState,
    SamplerReady,
    SavedCheckpoint,
    TrainingRequest,
    TrainingResult,
)
from tinkergate.core.checkpoint_registry import CheckpointEntry, CheckpointRegistry
from tinkergate.core.ids import (
    EXTERNAL_WEIGHTS,
    PATH_RULE,
    PATH_SCHEME,
    SAMPLER_WEIGHTS,
    WEIGHTS,
    CheckpointPath,
    parse_path,
    sampler_id,
)
from tinkergate.core.model_book import ModelBook
from tinkergate.core.model_entry import LiveModel
from tinkergate.core.samplers import Samplers
from tinkergate.errors import GatewayError, Kind, invalid_field
from tinkergate.v1 import (
    Checkpoint,
    ErrorReason,
    ForwardBackwardReverseKlRequest,
    LoadStateRequest,
    LoadStateResult,
    Model,
    OptimStepRequest,
    SaveStateRequest,
    SaveStateResult,
    SaveWeightsExternalRequest,
    SaveWeightsExternalResult,
    SaveWeightsForSamplerRequest,
    SaveWeightsForSamplerResult,
    VlaTrainStepRequest,
)

_SaveRequest = SaveStateRequest | SaveWeightsForSamplerRequest | SaveWeightsExternalRequest
_KINDS: dict[type[Message], str] = {
    SaveStateRequest: WEIGHTS,
    SaveWeightsForSamplerRequest: SAMPLER_WEIGHTS,
    SaveWeightsExternalRequest: EXTERNAL_WEIGHTS,
}
"""The kind of checkpoint that each request saves."""


class Outcome:
    """The outcome of one request. This one is for requests that need nothing: Forward and
    ForwardBackward, whose result is a message already."""

    def prepare(self) -> None:
        """Its turn has come: fill in and look up what depends on all that came before."""

    def conclude(self, result: TrainingResult) -> Message:
        """The result for the caller, after noting what it changes."""
        assert isinstance(result, Message)
        return result

    def release(self) -> None:
        """It is over, well or not: give back what was reserved."""


class Outcomes:
    """Makes the outcome of each request."""

    def __init__(self, book: ModelBook, samplers: Samplers, registry: CheckpointRegistry) -> None:
        self._book = book
        self._samplers = samplers
        self._registry = registry

    def of(self, live: LiveModel, request: TrainingRequest) -> Outcome:
        """The outcome of a request that is about to be given its place."""
        if isinstance(request, OptimStepRequest | VlaTrainStepRequest):
            return _OptimStep(live)
        if isinstance(request, SaveStateRequest | SaveWeightsExternalRequest):
            return _SaveCheckpoint(live, request, self._book, self._registry)
        if isinstance(request, ForwardBackwardReverseKlRequest):
            return _ReverseKl(live, request, self._registry)
        if isinstance(request, LoadStateRequest):
            return _LoadState(live, request, self._book, self._registry)
        if isinstance(request, SaveWeightsForSamplerRequest):
            if request.name:
                return _SaveCheckpoint(live, request, self._book, self._registry)
            return _MakeSampler(live, request, self._samplers)
        return Outcome()


def _check_same_base(model: Model, checkpoint: Checkpoint) -> None:
    """Raise if a checkpoint is not where the model is."""
    for what in ("base_model", "backend"):
        here, there = getattr(model, what), getattr(checkpoint, what)
        if here != there:
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH,
                f"checkpoint {checkpoint.path!r} has {what} {there!r}; the model has {here!r}",
            )


class _OptimStep(Outcome):
    """OptimStep, and VlaTrainStep, which takes a step too."""

    def __init__(self, live: LiveModel) -> None:
        self._live = live
        self._taken = True
        self.settled = False

    def prepare(self) -> None:
        self._live.changing.append(self)

    def conclude(self, result: TrainingResult) -> Message:
        self.settled = True
        self._live.count_steps()
        return super().conclude(result)

    def release(self) -> None:
        if not self.settled:
            self.settled, self._taken = True, False
            self._live.count_steps()

    def steps_after(self, steps: int) -> int:
        return steps + self._taken


class _StepCount:
    """How many optimizer steps a model has at the place of one operation in its order, whatever
    order the results of those around it come in."""

    def __init__(self, live: LiveModel) -> None:
        self._steps = live.entry.message.optimizer_steps
        self._before = tuple(live.changing)

    @property
    def now(self) -> int:
        """The number. What goes on is taken to succeed; it is certain once all before are done."""
        steps = self._steps
        for change in self._before:
            steps = change.steps_after(steps)
        return steps


class _SaveCheckpoint(Outcome):
    """SaveState, SaveWeightsExternal, and SaveWeightsForSampler with a name."""

    def __init__(
        self,
        live: LiveModel,
        request: _SaveRequest,
        book: ModelBook,
        registry: CheckpointRegistry,
    ) -> None:
        self._live = live
        self._request = request
        self._book = book
        self._registry = registry
        self._path: CheckpointPath | None = None
        self._count: _StepCount | None = None

    def prepare(self) -> None:
        request, model = self._request, self._live.entry.message
        self._count = _StepCount(self._live)
        kind = _KINDS[type(request)]
        if request.name:
            path = CheckpointPath(model.model_id, kind, request.name)
            self._registry.reserve(str(path), overwrite=request.overwrite)
        else:
            base = f"step-{self._count.now}"
            path = self._registry.reserve_unique(model.model_id, kind, base)
            request.name = path.name
        self._path = path

    def conclude(self, result: TrainingResult) -> Message:
        assert isinstance(result, SavedCheckpoint)
        assert self._path is not None
        assert self._count is not None
        request, path = self._request, self._path
        self._registry.saved(
            path,
            self._live.entry.message,
            saved=result,
            optimizer_steps=self._count.now,
            ttl=request.ttl if request.HasField("ttl") else None,
            user_metadata=request.user_metadata,
        )
        if path.kind == EXTERNAL_WEIGHTS:
            return SaveWeightsExternalResult(path=str(path), size_bytes=result.size_bytes)
        if path.kind == WEIGHTS:
            self._live.entry.message.last_checkpoint = str(path)
        else:
            self._live.entry.message.last_sampler_checkpoint = str(path)
        self._book.note(self._live.entry)
        if path.kind == WEIGHTS:
            return SaveStateResult(path=str(path), optimizer_steps=self._count.now)
        return SaveWeightsForSamplerResult(path=str(path), optimizer_steps=self._count.now)

    def release(self) -> None:
        if self._path is not None:
            self._registry.release(str(self._path))


class _ReverseKl(Outcome):
    """The reference is a checkpoint, or the model's own base model under any of its names."""

    def __init__(
        self,
        live: LiveModel,
        request: ForwardBackwardReverseKlRequest,
        registry: CheckpointRegistry,
    ) -> None:
        self._live = live
        self._request = request
        self._registry = registry
        if not request.reference_model_path.startswith(PATH_SCHEME):
            model = live.route.model
            names = (model.name, live.route.upstream_name, *model.aliases)
            if request.reference_model_path not in names:
                raise invalid_field(
                    "reference_model_path",
                    f"is {request.reference_model_path[:300]!r}; must be {PATH_RULE}, or the "
                    f"model's own base model, {model.name!r}",
                )
            request.reference_model_path = live.route.upstream_name
        elif parse_path(request.reference_model_path) is None:
            raise invalid_field(
                "reference_model_path",
                f"is {request.reference_model_path[:700]!r}; must be {PATH_RULE}",
            )

    def prepare(self) -> None:
        """Only now, as with LoadState."""
        if self._request.reference_model_path.startswith(PATH_SCHEME):
            entry = self._registry.require(self._request.reference_model_path)
            _check_same_base(self._live.entry.message, entry.message)


class _LoadState(Outcome):
    def __init__(
        self,
        live: LiveModel,
        request: LoadStateRequest,
        book: ModelBook,
        registry: CheckpointRegistry,
    ) -> None:
        self._live = live
        self._request = request
        self._book = book
        self._registry = registry
        self._checkpoint: CheckpointEntry | None = None
        self._loaded: int | None = None
        self.settled = False

    def prepare(self) -> None:
        """Only now: the checkpoint may have been saved by an operation just before."""
        entry = self._registry.require(self._request.path)
        entry.check_optimizer(self._request.with_optimizer)
        _check_same_base(self._live.entry.message, entry.message)
        self._checkpoint = entry
        self._live.changing.append(self)

    def conclude(self, result: TrainingResult) -> Message:
        assert isinstance(result, LoadedState)
        assert self._checkpoint is not None
        request = self._request
        self._loaded = self._checkpoint.steps_loaded(
            result.optimizer_steps, with_optimizer=request.with_optimizer
        )
        self.settled = True
        self._live.count_steps()
        self._book.note(self._live.entry)
        return LoadStateResult(path=request.path, optimizer_steps=self._loaded)

    def release(self) -> None:
        if not self.settled:
            self.settled = True
            self._live.count_steps()

    def steps_after(self, steps: int) -> int:
        return steps if self._loaded is None else self._loaded


class _MakeSampler(Outcome):
    """SaveWeightsForSampler without a name. The sampler's number is taken when the request is, so
    that the caller's own numbering holds."""

    def __init__(
        self, live: LiveModel, request: SaveWeightsForSamplerRequest, samplers: Samplers
    ) -> None:
        self._live = live
        self._samplers = samplers
        self._session_id = live.entry.message.session_id
        asked = request.sampler_seq_id if request.HasField("sampler_seq_id") else None
        self._number = samplers.reserve(self._session_id, asked)
        request.sampler_seq_id = self._number
        self._made = False
        self._count: _StepCount | None = None

    def prepare(self) -> None:
        self._count = _StepCount(self._live)

    def conclude(self, result: TrainingResult) -> Message:
        assert isinstance(result, SamplerReady)
        model = self._live.entry.message
        new_id = sampler_id(self._session_id, self._number)
        self._samplers.adopt(new_id, model.base_model, self._live.route)
        self._made = True
        assert self._count is not None
        return SaveWeightsForSamplerResult(sampler_id=new_id, optimizer_steps=self._count.now)

    def release(self) -> None:
        if not self._made:
            self._samplers.release(self._session_id, self._number)
