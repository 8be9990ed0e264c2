"""Training operations: submitted in their order, followed to their results (wire sections 5 and
11).

The parts of a large batch are posted one after the other, each when the one before was accepted:
their numbers would order them, but a batch in memory is large enough once. Nothing at Loops takes a
gradient back, so a batch of which a part failed leaves the model in doubt.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import dataclass
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
from tinkergate.backends.failures import outcome_unknown
from tinkergate.backends.known_checkpoints import KnownCheckpoint, KnownCheckpoints
from tinkergate.backends.loops.capabilities import emulated_names
from tinkergate.backends.loops.models import LoopsModel, UpstreamModels
from tinkergate.backends.loops.operations import Accepted, OperationLost, Operations, accepted
from tinkergate.backends.loops.samplers import UpstreamSamplers
from tinkergate.backends.loops.service import Effect, Service
from tinkergate.backends.loops.trainer import Trainer
from tinkergate.backends.loops.training_operations import (
    LOOK,
    LoopsOperation,
    Saved,
    loops_operation,
)
from tinkergate.dialects.loops.paths import LoopsPath, Target, loops_path
from tinkergate.errors import ErrorReason, GatewayError, Kind, unsupported
from tinkergate.v1 import (
    CheckpointSource,
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    Normalization,
    OptimStepRequest,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)

SaveRequest = SaveStateRequest | SaveWeightsForSamplerRequest
_GONE = frozenset({Kind.OUTCOME_UNKNOWN, Kind.NOT_FOUND, Kind.UNAVAILABLE})
"""What a load fails with that a fresh trainer may be spared."""
MAX_NAME = 128
"""The most characters of a checkpoint's name."""


@dataclass
class _Progress:
    """Whether work on an operation has begun."""

    on_start: OnStart
    started: bool = False

    def start(self) -> None:
        """It has."""
        if not self.started:
            self.started = True
            self.on_start()


class Training:
    """Takes training requests."""

    def __init__(
        self,
        service: Service,
        operations: Operations,
        models: UpstreamModels,
        samplers: UpstreamSamplers,
        checkpoints: KnownCheckpoints,
    ) -> None:
        self._service = service
        self._operations = operations
        self._models = models
        self._samplers = samplers
        self._checkpoints = checkpoints
        self._emulated = emulated_names()

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        """Take a request. Returns when the service has accepted it. Raises GatewayError; after
        OUTCOME_UNKNOWN the model takes nothing but LoadState."""
        model = self._models.require(request.model_id)
        progress = _Progress(on_start)

        async def accept(request: TrainingRequest) -> Submission:
            return await self._accepted(model, request, progress)

        if isinstance(request, LoadStateRequest):
            return await self._load(model, request, progress)
        if model.trainer.doubt:
            raise self._in_doubt(model.trainer)
        if isinstance(request, ForwardRequest | ForwardBackwardRequest):
            self._check_normalization(model, request)
            if request.loss_fn in self._emulated:
                return await emulate(request, accept)
        if isinstance(request, SaveWeightsForSamplerRequest) and not request.name:
            # There must be something to tell the new weights to.
            await self._samplers.paired(model.trainer)
        return await accept(request)

    def _check_normalization(
        self, model: LoopsModel, request: ForwardRequest | ForwardBackwardRequest
    ) -> None:
        """Gradients of both kinds must not meet in one step (wire section 6)."""
        if isinstance(request, ForwardRequest):
            return
        per_token = request.normalization == Normalization.NORMALIZATION_PER_TOKEN
        if per_token and request.loss_fn in self._emulated:
            raise unsupported(
                f"gradients per token of {request.loss_fn!r}, which the gateway computes",
                self._service.name,
            )
        if model.trainer.gradients[not per_token] > 0:
            kinds = {False: "sums", True: "per token"}
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_NORMALIZATION_MIXED,
                f"the gradients since the last optimizer step are {kinds[not per_token]} and this "
                f"one is {kinds[per_token]}: they do not add up; take the step between them",
                backend=self._service.name,
            )

    async def _accepted(
        self, model: LoopsModel, request: TrainingRequest, progress: _Progress
    ) -> Submission:
        name = self._save_name(request) if isinstance(request, SaveRequest) else ""
        operation = await loops_operation(request, self._service.name, self._checkpoints, name)
        trainer = model.trainer
        if trainer.doubt:
            # Something before it has failed while it was being got ready.
            raise self._in_doubt(trainer)
        works = await self._post(trainer, operation)
        if isinstance(request, OptimStepRequest | LoadStateRequest):
            trainer.gradients = Counter()
        elif operation.per_token is not None:
            trainer.gradients[operation.per_token] += 1
        result = self._follow(model, trainer, request, operation, works, progress)
        task = asyncio.get_running_loop().create_task(result)
        model.running.add(task)
        task.add_done_callback(model.running.discard)
        if isinstance(request, SaveWeightsForSamplerRequest) and not request.name:
            # The sampler to be needs the trainer, though the model may have another one by then.
            self._samplers.hold(trainer)
            task.add_done_callback(lambda _: self._samplers.let_go(trainer))
        return Submission(task)

    async def _post(self, trainer: Trainer, operation: LoopsOperation) -> list[Accepted]:
        """Have the service accept all parts of an operation."""
        harmless = operation.route == "forward"
        works: list[Accepted] = []
        while operation.bodies:
            call = trainer.call(
                operation.route,
                f"{operation.route} of model {trainer.model_id}",
                operation.bodies.pop(0),
                within=self._service.settings.submit_timeout,
                look=operation.look,
            )
            # Not to know the numbers of a forward changes nothing.
            effect = Effect.NONE if harmless else None
            try:
                work = await self._service.call(call, accepted(call, trainer.run.base_url, effect))
            except GatewayError as error:
                if error.kind is Kind.UNAVAILABLE and "upstream_status" not in error.metadata:
                    # It surely never arrived, so the service would wait for its number.
                    trainer.next_seq -= 1
                raise self._not_accepted(trainer, operation, error, len(works)) from None
            except asyncio.CancelledError:
                if operation.changes_model:
                    trainer.doubted(f"{call.operation} was interrupted while it was being sent")
                raise
            trainer.ready = True
            works.append(work)
        return works

    def _not_accepted(
        self, trainer: Trainer, operation: LoopsOperation, error: GatewayError, before: int
    ) -> GatewayError:
        """A part of an operation was not accepted, after so many that were."""
        if error.metadata.get("upstream_status") == "503":
            # The trainer is being shut down, and what comes back is not this one.
            trainer.doubted(str(error))
        if not operation.changes_model:
            return error
        if before:
            error = self._torn(trainer, operation, error)
        if error.kind is Kind.OUTCOME_UNKNOWN:
            trainer.doubted(str(error))
        return error

    def _torn(
        self, trainer: Trainer, operation: LoopsOperation, error: GatewayError
    ) -> GatewayError:
        """A batch of which a part was done and another was not."""
        return outcome_unknown(
            self._service.name,
            f"{operation.route} of model {trainer.model_id}",
            f"of its {len(operation.readers)} parts one failed ({error})",
            error.metadata.get("upstream_request_id", ""),
            LOOK,
        )

    async def _follow(
        self,
        model: LoopsModel,
        trainer: Trainer,
        request: TrainingRequest,
        operation: LoopsOperation,
        works: list[Accepted],
        progress: _Progress,
    ) -> TrainingResult:
        """Wait for the results of an accepted operation, and note what it changes in its trainer:
        the model may have another one meanwhile."""
        gradients = trainer.gradients
        # All are waited for, failed or not: what goes on is not forgotten.
        outcomes = await asyncio.gather(
            *(
                self._result(work, read, progress)
                for work, read in zip(works, operation.readers, strict=True)
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, GatewayError):
                raise outcome
        failed = [outcome for outcome in outcomes if isinstance(outcome, GatewayError)]
        if failed:
            error = next((e for e in failed if e.kind is Kind.OUTCOME_UNKNOWN), failed[0])
            if operation.changes_model:
                if len(failed) < len(outcomes):
                    error = self._torn(trainer, operation, error)
                if error.kind is Kind.OUTCOME_UNKNOWN:
                    trainer.doubted(str(error))
                elif operation.per_token is not None:
                    gradients[operation.per_token] -= 1
            raise error
        progress.start()
        try:
            result = await asyncio.to_thread(operation.joined, outcomes)
        except GatewayError as error:
            if operation.changes_model:
                trainer.doubted(str(error))
            raise
        if isinstance(request, SaveRequest):
            return await self._saved(model, trainer, request, result)
        if isinstance(request, OptimStepRequest):
            trainer.optimizer_steps += 1
        elif isinstance(request, LoadStateRequest):
            trainer.loaded(result if request.with_optimizer else 0)
            return LoadedState(trainer.optimizer_steps)
        typed: TrainingResult = result
        return typed

    async def _result(self, work: Accepted, read: Any, progress: _Progress) -> Any:
        try:
            return await self._operations.result(work, read, progress.start)
        except OperationLost as lost:
            raise lost.error from None

    def _in_doubt(self, trainer: Trainer) -> GatewayError:
        return GatewayError(
            Kind.PRECONDITION,
            ErrorReason.ERROR_REASON_MODEL_NOT_READY,
            f"backend {self._service.name!r}: {LOOK}. It began with: {trainer.doubt}",
            backend=self._service.name,
        )

    async def _load(
        self, model: LoopsModel, request: LoadStateRequest, progress: _Progress
    ) -> Submission:
        """LoadState: into the trainer as it stands, or into a fresh one where nobody knows what has
        become of that."""
        trainer = model.trainer
        if not trainer.doubt:
            try:
                return await self._accepted(model, request, progress)
            except GatewayError as error:
                # The trainer is gone, or may load late what was sent.
                if error.kind not in _GONE and not trainer.doubt:
                    raise
        source = CheckpointSource(path=request.path, with_optimizer=request.with_optimizer)
        await self._models.remake(model, source)
        progress.start()
        done: asyncio.Future[TrainingResult] = asyncio.get_running_loop().create_future()
        done.set_result(LoadedState(model.trainer.optimizer_steps))
        return Submission(done)

    def _save_name(self, request: SaveRequest) -> str:
        """What the service is to call a checkpoint. It does not say what becomes of one that has
        the name already, so another name stands for a replacement."""
        if not request.name:
            return f"sampler-{secrets.token_hex(16)}"
        if request.overwrite and _path(request) in self._checkpoints:
            suffix = f"-{secrets.token_hex(4)}"
            return request.name[: MAX_NAME - len(suffix)] + suffix
        return request.name

    async def _saved(
        self, model: LoopsModel, trainer: Trainer, request: SaveRequest, saved: Saved
    ) -> TrainingResult:
        training = isinstance(request, SaveStateRequest)
        upstream_path = _upstream_path(trainer, "trainer" if training else "sampler", saved)
        if not request.name:
            assert isinstance(request, SaveWeightsForSamplerRequest)
            await self._samplers.adopt(
                trainer, request.sampler_seq_id, upstream_path, saved.version
            )
            return SamplerReady()
        path = _path(request)
        known = KnownCheckpoint(
            upstream_path,
            model.base_model,
            model.lora_config,
            model.optimizer_config,
            trainer.optimizer_steps,
            training,
        )
        self._checkpoints.note(path, known)
        self._samplers.forget(path)
        return SavedCheckpoint(0, training, upstream_path)


def _path(request: SaveRequest) -> str:
    """The canonical path of what a request saves."""
    target: Target = "trainer" if isinstance(request, SaveStateRequest) else "sampler"
    return LoopsPath(request.model_id, target, request.name).canonical


def _upstream_path(trainer: Trainer, target: Target, saved: Saved) -> str:
    """The service's path of what was saved: some trainers tell where they put it instead, which
    nobody else can read (wire section 5.3)."""
    run_id = trainer.run.run_id
    told = loops_path(saved.path)
    if told is None or (told.run_id, told.target) != (run_id, target):
        told = LoopsPath(run_id, target, saved.name)
    return str(told)
