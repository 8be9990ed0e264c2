"""What the core knows of a backend: the `Backend` protocol and the few shapes it speaks in.

Protobuf messages are the domain types. The core has checked every request before a backend sees
it, has filled in names and ids that the caller left out, and hands a model's training requests
over in their order; a backend translates, works or sends, and answers. It raises nothing but
`GatewayError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from tinkergate.v1 import (
    ActBatchRequest,
    ActBatchResponse,
    ActRequest,
    ActResponse,
    BackendCapabilities,
    Checkpoint,
    CheckpointFile,
    CheckpointSource,
    CreateActionSessionRequest,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    InterpolateCheckpointsRequest,
    LoadStateRequest,
    LoraConfig,
    OptimizerConfig,
    OptimStepRequest,
    OptimStepResult,
    QueueState,
    RolloutCorrection,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    ScoreRequest,
    ScoreResponse,
    SupportedModel,
    VlaTrainStepRequest,
    VlaTrainStepResult,
)

TrainingRequest = (
    ForwardRequest
    | ForwardBackwardRequest
    | OptimStepRequest
    | SaveStateRequest
    | LoadStateRequest
    | SaveWeightsForSamplerRequest
    | SaveWeightsExternalRequest
    | ForwardBackwardReverseKlRequest
    | VlaTrainStepRequest
)
"""A request that takes a turn in a model's order."""


@dataclass(frozen=True)
class LoadedState:
    """The outcome of LoadState."""

    optimizer_steps: int
    """Steps that the model has now taken: the checkpoint's with its optimizer, else 0."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """The outcome of SaveState, of SaveWeightsForSampler with a name, of SaveWeightsExternal, and
    of every other way in which a checkpoint comes to be."""

    size_bytes: int
    """0 if the backend does not say."""
    has_optimizer: bool
    upstream_path: str = ""
    """The backend's own path of it, where that differs from the canonical one. The gateway keeps
    it, and tells it to the backend again after a restart (`Backend.start`)."""
    lora_config: LoraConfig | None = None
    """The adapter, where the backend has looked at it: of an import, the gateway knows only what
    the caller's files say."""


@dataclass(frozen=True)
class SamplerReady:
    """The outcome of SaveWeightsForSampler without a name: the sampler is there."""


TrainingResult = (
    ForwardBackwardOutput
    | OptimStepResult
    | SavedCheckpoint
    | LoadedState
    | SamplerReady
    | VlaTrainStepResult
)


OnQueueState = Callable[[QueueState.ValueType, str], None]


def _no_matter(state: QueueState.ValueType, reason: str) -> None:
    """For callers that do not ask why their work waits."""


@dataclass(frozen=True)
class ModelSpec:
    """A model to make."""

    model_id: str
    base_model: str
    """The backend's own name of the base model."""
    lora_config: LoraConfig
    """What the caller asked for; empty with a checkpoint."""
    optimizer_config: OptimizerConfig
    checkpoint: CheckpointSource | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    rollout_correction: RolloutCorrection | None = None
    exact_adapter: bool = False
    """Refuse to make another adapter than was asked for, rather than tell of it in the notes."""
    on_state: OnQueueState = field(default=_no_matter, compare=False)
    """Told why the model is not ready yet, whenever that changes, with words for people."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as it was made."""

    lora_config: LoraConfig
    """With every default filled in, the seed included."""
    tokenizer_id: str
    arch: str
    vocab_size: int
    max_context_length: int
    optimizer_steps: int = 0
    notes: tuple[str, ...] = ()
    """Where the adapter differs from what was asked and the caller accepted."""


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler to make: of a base model, or of a checkpoint on it."""

    sampler_id: str
    base_model: str
    model_path: str = ""


def _never_cancelled() -> bool:
    return False


def _active() -> tuple[QueueState.ValueType, str]:
    return QueueState.QUEUE_STATE_ACTIVE, ""


@dataclass(frozen=True)
class Submission:
    """A training request that a backend has accepted in its order."""

    result: Awaitable[TrainingResult]
    """What comes out; raises GatewayError. To be awaited once, and never cancelled: only `cancel`
    ends the work."""
    cancel: Callable[[], bool] = _never_cancelled
    """Ask that the work take no effect. False if that is out of the question; True means that
    `result` raises a cancelled error unless the work was done first."""
    queue_state: Callable[[], tuple[QueueState.ValueType, str]] = _active
    """Why it waits, while it does, with words for people."""


OnStart = Callable[[], None]
"""Called once, on the event loop, when work begins."""

OnPrompt = Callable[[SampleResponse], None]
OnSequence = Callable[[int, SampledSequence], None]


@dataclass(frozen=True)
class SampleEvents:
    """Where a backend reports the parts of a sample call as they come, on the event loop. A
    backend that only learns the whole at the end need not report: the core does it then."""

    on_prompt: OnPrompt
    """What was asked about the prompt; has no sequences."""
    on_sequence: OnSequence
    """A finished sequence and its place in the request."""
    on_queue_state: OnQueueState = _no_matter
    """Why the call waits, whenever that changes, with words for people."""


class Backend(Protocol):
    """Something that trains, samples and scores. All methods run on the gateway's event loop and
    must not block it."""

    @property
    def name(self) -> str:
        """The name to choose it by."""

    async def start(self, known: Sequence[Checkpoint] = ()) -> None:
        """Get ready. Called before anything else but `capabilities`, and again if it raised, until
        it does not. `known` are the checkpoints that the gateway remembers of it, with their
        `upstream_path`."""

    async def close(self) -> None:
        """Let go of everything. Called once, when nothing is running any more, be it that `start`
        never succeeded."""

    def capabilities(self) -> BackendCapabilities:
        """What it can do. Must not change after `start`."""

    async def models(self) -> Sequence[SupportedModel]:
        """The base models that it serves."""

    async def create_model(self, spec: ModelSpec) -> ModelFacts:
        """Make a model, ready to train when this returns. Leaves nothing behind if cancelled."""

    async def unload_model(self, model_id: str) -> None:
        """Free a model. Work of it that is still running ends first. Unknown ids are no error."""

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        """Take a request. Returns when its place after all earlier ones of the model is fixed."""

    async def create_sampler(self, spec: SamplerSpec) -> None:
        """Make a sampler. The weights are as they are now, and stay so."""

    async def close_sampler(self, sampler_id: str) -> None:
        """Free a sampler. Calls that are running end first. Unknown ids are no error."""

    async def sample(self, request: SampleRequest, events: SampleEvents) -> SampleResponse:
        """Draw sequences. Cancelling the task stops the work."""

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Score sequences. Cancelling the task stops the work."""

    async def checkpoints(self) -> Sequence[Checkpoint]:
        """The checkpoints that it holds and the gateway's store may not know: asked at start."""

    async def delete_checkpoint(self, path: str) -> None:
        """Remove a checkpoint for good. Unknown paths are no error."""

    async def import_checkpoint(
        self, checkpoint: Checkpoint, files: Mapping[str, Path]
    ) -> SavedCheckpoint:
        """Take in a PEFT adapter from `files` (by file name) as `checkpoint.path` on the base
        model `checkpoint.base_model`."""

    async def copy_checkpoint(self, source: str, checkpoint: Checkpoint) -> SavedCheckpoint:
        """Make `checkpoint.path` of the same weights as the checkpoint `source`."""

    async def interpolate_checkpoints(
        self, request: InterpolateCheckpointsRequest, checkpoint: Checkpoint
    ) -> SavedCheckpoint:
        """Make `checkpoint.path` of the weighted sum of others. Asked only of backends that say
        `checkpoint_interpolation`."""

    async def checkpoint_files(self, path: str) -> Sequence[CheckpointFile]:
        """The files of a checkpoint, by name. Asked, like `read_checkpoint_file`, only of backends
        that say `checkpoint_files`."""

    def read_checkpoint_file(self, path: str, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of one file from `offset` on, in pieces of moderate size."""


@runtime_checkable
class ActionBackend(Protocol):
    """What a backend that says `vla` has beside the methods of `Backend`."""

    async def create_action_session(self, request: CreateActionSessionRequest) -> str:
        """Open an action session. Answers its id upstream."""

    async def act(self, request: ActRequest) -> ActResponse:
        """What to do for one observation."""

    async def act_batch(self, request: ActBatchRequest) -> ActBatchResponse:
        """What to do for each of several observations."""

    async def close_action_session(self, action_session_id: str) -> None:
        """End an action session. Unknown ids are no error."""
