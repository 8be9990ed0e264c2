"""Training operations: submitted in their order, followed to their results (wire section 7).

The service's seq_ids of a model are this backend's own count: one for each operation that the
service has accepted, so that there are no holes. A request that is refused keeps its number for
the next.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tinkergate.backends.base import (
    LoadedState,
    OnStart,
    SamplerReady,
    SavedCheckpoint,
    Submission,
    TrainingRequest,
    TrainingResult,
)
from tinkergate.backends.emulation import emulate
from tinkergate.backends.errands import Errands
from tinkergate.backends.known_checkpoints import KnownCheckpoint, KnownCheckpoints
from tinkergate.backends.tinker.capabilities import capabilities
from tinkergate.backends.tinker.futures import Accepted, FutureLost, Futures, accepted
from tinkergate.backends.tinker.models import UpstreamModel, UpstreamModels
from tinkergate.backends.tinker.operations import LOOK, Saved, WireOperation, wire_operation
from tinkergate.backends.tinker.samplers import UpstreamSamplers
from tinkergate.backends.tinker.service import Effect, Service
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.v1 import (
    CheckpointSource,
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    OptimStepRequest,
    QueueState,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    VlaTrainStepRequest,
)

SaveRequest = SaveStateRequest | SaveWeightsForSamplerRequest | SaveWeightsExternalRequest
_KINDS: dict[type[Any], str] = {
    SaveStateRequest: "weights",
    SaveWeightsForSamplerRequest: "sampler_weights",
    SaveWeightsExternalRequest: "external_weights",
}
MAX_NAME = 128
"""The most characters of a checkpoint's name."""


@dataclass
class _Progress:
    """How far an operation is."""

    on_start: OnStart
    state: QueueState.ValueType = QueueState.QUEUE_STATE_ACTIVE
    reason: str = ""
    started: bool = False

    def note(self, state: QueueState.ValueType, reason: str) -> None:
        """The service said why the operation is not done."""
        self.state, self.reason = state, reason
        if state == QueueState.QUEUE_STATE_ACTIVE:
            self.start()

    def start(self) -> None:
        """Work on it has begun."""
        if not self.started:
            self.started = True
            self.on_start()


class Training:
    """Takes training requests."""

    def __init__(
        self,
        service: Service,
        futures: Futures,
        models: UpstreamModels,
        samplers: UpstreamSamplers,
        checkpoints: KnownCheckpoints,
        errands: Errands,
        delete: Callable[[str], Any],
    ) -> None:
        """`delete` removes what the service calls by a path."""
        self._service = service
        self._futures = futures
        self._models = models
        self._samplers = samplers
        self._checkpoints = checkpoints
        self._errands = errands
        self._delete = delete
        losses = capabilities(service.settings).losses
        self._emulated = frozenset(loss.name for loss in losses if loss.emulated)

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        """Take a request. Returns when the service has accepted it. Raises GatewayError; after
        OUTCOME_UNKNOWN the model takes nothing but LoadState."""
        model = self._models.require(request.model_id)
        progress = _Progress(on_start)

        async def accept(request: TrainingRequest) -> Submission:
            if model.doubt:
                raise self._in_doubt(model)
            return await self._accepted(model, request, progress)

        if isinstance(request, LoadStateRequest):
            return await self._load(model, request, progress)
        if (
            isinstance(request, ForwardRequest | ForwardBackwardRequest)
            and request.loss_fn in self._emulated
        ):
            return await emulate(request, accept)
        return await accept(request)

    async def _accepted(
        self, model: UpstreamModel, request: TrainingRequest, progress: _Progress
    ) -> Submission:
        operation = self._operation(model, request)
        work = await self._post(model, operation)
        result = self._follow(model, request, operation, work, progress)
        task = asyncio.get_running_loop().create_task(result)
        model.running.add(task)
        task.add_done_callback(model.running.discard)
        return Submission(task, queue_state=lambda: (progress.state, progress.reason))

    def _operation(self, model: UpstreamModel, request: TrainingRequest) -> WireOperation:
        name = sampler_seq = None
        dialect = self._service.settings.dialect
        if isinstance(request, SaveRequest):
            name = self._save_name(request)
            if name is None and dialect == "mint":
                # It has no such short cut: a checkpoint is saved, and a sampler made of it.
                name = f"sampler-{secrets.token_hex(6)}"
            elif name is None:
                sampler_seq = model.session.next_sampler()
        return wire_operation(
            request,
            model,
            dialect,
            self._checkpoints,
            compress=self._service.flags.compress_training,
            save_name=name,
            sampler_seq=sampler_seq,
        )

    def _save_name(self, request: SaveRequest) -> str | None:
        """What the service is to call a checkpoint; None if it is to make a sampler. Only
        save_weights can replace one, so another name stands for a replacement elsewhere."""
        if not request.name:
            return None
        if (
            request.overwrite
            and not isinstance(request, SaveStateRequest)
            and _path(request) in self._checkpoints
        ):
            suffix = f"-{secrets.token_hex(4)}"
            return request.name[: MAX_NAME - len(suffix)] + suffix
        return request.name

    async def _post(self, model: UpstreamModel, operation: WireOperation) -> Accepted:
        """Have the service accept an operation."""
        call = operation.call
        try:
            work = await self._service.call(call, accepted(call, operation.request_type))
        except GatewayError as error:
            if error.kind is Kind.OUTCOME_UNKNOWN:
                model.doubted(str(error))
            raise
        except asyncio.CancelledError:
            model.doubted(f"{call.operation} was interrupted while it was being sent")
            raise
        model.next_seq += operation.numbered
        # Not to know the numbers of a forward changes nothing.
        harmless = not operation.changes_model and operation.request_type == "Forward"
        return replace(work, effect=Effect.NONE) if harmless else work

    async def _follow(
        self,
        model: UpstreamModel,
        request: TrainingRequest,
        operation: WireOperation,
        work: Accepted,
        progress: _Progress,
    ) -> TrainingResult:
        """Wait for the result of an accepted operation, and note what it changes."""
        try:
            result = await self._futures.result(
                work, operation.read, on_state=progress.note, protobuf=operation.protobuf
            )
        except FutureLost as lost:
            self._note_loss(model, operation, lost.error)
            raise lost.error from None
        except GatewayError as error:
            self._note_loss(model, operation, error)
            raise
        progress.start()
        if isinstance(request, SaveRequest):
            return await self._saved(model, request, result)
        if isinstance(request, OptimStepRequest | VlaTrainStepRequest):
            model.optimizer_steps += 1
        elif isinstance(request, LoadStateRequest):
            return self._loaded(model, request)
        return _as_result(result)

    def _note_loss(
        self, model: UpstreamModel, operation: WireOperation, error: GatewayError
    ) -> None:
        if operation.changes_model and error.reason == ErrorReason.ERROR_REASON_OUTCOME_UNKNOWN:
            model.doubted(str(error))

    def _in_doubt(self, model: UpstreamModel) -> GatewayError:
        return GatewayError(
            Kind.PRECONDITION,
            ErrorReason.ERROR_REASON_MODEL_NOT_READY,
            f"backend {self._service.name!r}: {LOOK}. It began with: {model.doubt}",
            backend=self._service.name,
        )

    async def _load(
        self, model: UpstreamModel, request: LoadStateRequest, progress: _Progress
    ) -> Submission:
        """LoadState: into the model as it stands, or into a fresh one where nobody knows what has
        become of that."""
        if not model.doubt:
            try:
                return await self._accepted(model, request, progress)
            except GatewayError as error:
                # The service does not know the model any more, or may load late what was sent.
                if error.kind not in (Kind.OUTCOME_UNKNOWN, Kind.NOT_FOUND):
                    raise
        source = CheckpointSource(path=request.path, with_optimizer=request.with_optimizer)
        await self._models.remake(model, source)
        progress.start()
        done: asyncio.Future[TrainingResult] = asyncio.get_running_loop().create_future()
        done.set_result(LoadedState(model.optimizer_steps))
        return Submission(done)

    def _loaded(self, model: UpstreamModel, request: LoadStateRequest) -> LoadedState:
        known = self._checkpoints.find(request.path)
        model.optimizer_steps = known.optimizer_steps if request.with_optimizer else 0
        return LoadedState(model.optimizer_steps)

    async def _saved(
        self, model: UpstreamModel, request: SaveRequest, saved: Saved
    ) -> TrainingResult:
        if not request.name:
            assert isinstance(request, SaveWeightsForSamplerRequest)
            await self._samplers.adopt(model, request.sampler_seq_id, saved)
            return SamplerReady()
        path, training = _path(request), isinstance(request, SaveStateRequest)
        if not saved.path:
            raise self._service.broken(f"saving {path}", "names no path of the checkpoint")
        replaced = self._checkpoints.find(path).upstream_path if path in self._checkpoints else ""
        known = KnownCheckpoint(
            saved.path,
            model.base_model,
            model.lora_config,
            model.optimizer_config,
            model.optimizer_steps,
            training,
        )
        self._checkpoints.note(path, known)
        self._samplers.forget(path)
        if replaced and replaced != saved.path:
            self._errands.run(self._delete(replaced), f"removing {replaced}")
        own_path = saved.path if saved.path != path else ""
        return SavedCheckpoint(saved.size_bytes, training, own_path)


def _path(request: SaveRequest) -> str:
    """The canonical path of what a request saves."""
    return f"tinker://{request.model_id}/{_KINDS[type(request)]}/{request.name}"


def _as_result(result: Any) -> TrainingResult:
    """An operation's result is its message, but for those that are looked at above."""
    typed: TrainingResult = result
    return typed
