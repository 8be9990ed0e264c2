"""A program's stay at the gateway, which owns its models and samplers."""

from __future__ import annotations

import itertools
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from types import TracebackType
from typing import Self

from tinkergate import v1
from tinkergate_client._actions import ActionSession
from tinkergate_client._checkpoint_records import Checkpoint
from tinkergate_client._checkpoints import Checkpoints
from tinkergate_client._connection import Connection
from tinkergate_client._errors import FailedPrecondition, NotFound, TinkergateError
from tinkergate_client._futures import OperationFuture
from tinkergate_client._sampling import Sampler
from tinkergate_client._scoring import Source
from tinkergate_client._training import TrainingModel

_log = logging.getLogger("tinkergate_client")
_HEARTBEAT_TIMEOUT = 10.0


class Session:
    """Keeps itself alive by a heartbeat from a background thread, until it is finished: by
    `finish`, or at the end of a `with` block, which also says how the block ended."""

    def __init__(
        self, connection: Connection, session: v1.Session, heartbeat_interval: float
    ) -> None:
        self._connection = connection
        self.session_id = session.session_id
        """The session's id."""
        self._model_ids = itertools.count(len(session.model_ids))
        self._sampler_ids = itertools.count(len(session.sampler_ids))
        self._models: list[TrainingModel] = []
        self._interval = heartbeat_interval
        self._ended = threading.Event()
        threading.Thread(
            target=self._beat, name=f"tinkergate-heartbeat-{self.session_id}", daemon=True
        ).start()

    def create_model(
        self,
        base_model: str = "",
        *,
        rank: int | None = None,
        seed: int | None = None,
        alpha: float | None = None,
        train_mlp: bool | None = None,
        train_attn: bool | None = None,
        train_unembed: bool | None = None,
        optimizer: v1.OptimizerConfig | None = None,
        backend: str = "",
        user_metadata: Mapping[str, str] | None = None,
        rollout_correction: v1.RolloutCorrection | None = None,
        exact_adapter: bool = False,
    ) -> TrainingModel:
        """Make a LoRA adapter on a base model, and wait until it is ready.

        Args:
            base_model: As the capabilities name it; the gateway's default model if empty.
            rank: The rank of the adapter; 32 if None.
            seed: Of the adapter's initial weights; drawn if None.
            alpha: The adapter's scale is alpha / rank; 32 if None.
            train_mlp, train_attn, train_unembed: Which parts are adapted; all if None.
            optimizer: What the model is made for; AdamW if None.
            backend: The backend that is to train it; empty leaves the choice to the gateway.
            user_metadata: Your own notes.
            rollout_correction: What the importance_sampling loss does with sequences that trainer
                and sampler disagree on; nothing if None.
            exact_adapter: Refuse a backend that would train other parts, rather than have it told
                in the model's notes.

        Raises TinkergateError.
        """
        request = v1.CreateModelRequest(
            base_model=base_model or self._connection.default_model(),
            lora_config=v1.LoraConfig(
                rank=rank,
                seed=seed,
                alpha=alpha,
                train_mlp=train_mlp,
                train_attn=train_attn,
                train_unembed=train_unembed,
            ),
            optimizer_config=optimizer,
            backend=backend,
            user_metadata=dict(user_metadata or {}),
            rollout_correction=rollout_correction,
            exact_adapter=exact_adapter,
        )
        return self._create(request)

    def create_model_from_checkpoint(
        self,
        path: str,
        *,
        with_optimizer: bool = False,
        backend: str = "",
        user_metadata: Mapping[str, str] | None = None,
        rollout_correction: v1.RolloutCorrection | None = None,
    ) -> TrainingModel:
        """Make a model that goes on from a checkpoint, and wait until it is ready. The optimizer
        goes on too, or starts anew. Raises TinkergateError."""
        request = v1.CreateModelRequest(
            checkpoint=v1.CheckpointSource(path=path, with_optimizer=with_optimizer),
            backend=backend,
            user_metadata=dict(user_metadata or {}),
            rollout_correction=rollout_correction,
        )
        return self._create(request)

    def attach_model(self, model_id: str) -> TrainingModel:
        """A model of this session that another program made. Two programs must not train one model
        at the same time. Raises TinkergateError."""
        model = self._connection.call(
            self._connection.models.GetModel, v1.GetModelRequest(model_id=model_id)
        ).model
        return self._training_model(model_id, model.next_seq_id)

    def create_sampler(
        self, base_model: str = "", *, model_path: str = "", backend: str = ""
    ) -> Sampler:
        """Make a sampler of a base model or of a checkpoint; of the gateway's default model if
        neither is given. Raises TinkergateError."""
        request = v1.CreateSamplerRequest(
            session_id=self.session_id, sampler_seq_id=self._take_sampler_id(), backend=backend
        )
        if model_path:
            request.model_path = model_path
        else:
            request.base_model = base_model or self._connection.default_model()
        sampler = self._connection.call(self._connection.sampling.CreateSampler, request).sampler
        return Sampler(self._connection, Source(sampler_id=sampler.sampler_id))

    def create_action_session(
        self, base_model: str = "", *, model_path: str = "", owner_id: str = "", backend: str = ""
    ) -> ActionSession:
        """Have a vision-language-action model act: a checkpoint of one, or a base model. Backends
        that offer it say `vla` in their capabilities. Raises TinkergateError."""
        request = v1.CreateActionSessionRequest(
            session_id=self.session_id,
            base_model=base_model,
            model_path=model_path,
            owner_id=owner_id,
            backend=backend,
        )
        made = self._connection.call(self._connection.mint.CreateActionSession, request)
        return ActionSession(self._connection, made.action_session_id)

    def copy_checkpoint(self, path: str, *, ttl: timedelta | None = None) -> Checkpoint:
        """Make a checkpoint of the same weights, which outlives the original, under a training run
        of this session that cannot be trained on. After `ttl` the gateway removes it. Raises
        TinkergateError."""
        return Checkpoints(self._connection).copy(
            path, session_id=self.session_id, model_seq_id=next(self._model_ids), ttl=ttl
        )

    def finish(self, reason: str = "success", detail: str = "") -> None:
        """End the session and unload its models. `reason` is "success", which first waits until
        everything submitted before is done, or "errored" or "interrupted", which do not. Finishing
        twice is no error. Raises TinkergateError."""
        finish_reason = v1.FinishReason.Value(f"FINISH_REASON_{reason.upper()}")
        for model in self._models:
            model.close(drain=reason == "success")
        self._ended.set()
        self._connection.call(
            self._connection.sessions.FinishSession,
            v1.FinishSessionRequest(
                session_id=self.session_id, reason=finish_reason, detail=detail
            ),
            timeout=_HEARTBEAT_TIMEOUT,
            # A program that is going down does not wait for a gateway that is gone.
            patience=None if reason == "success" else 0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.finish(*_ending(error))
        except TinkergateError as failure:
            # The work itself is done or has failed; the session expires by itself.
            _log.warning("session %s was not finished: %s", self.session_id, failure)

    def _create(self, request: v1.CreateModelRequest) -> TrainingModel:
        request.session_id = self.session_id
        request.model_seq_id = next(self._model_ids)
        request.request_id = str(uuid.uuid4())
        operation = self._connection.call(self._connection.models.CreateModel, request)
        accepted: Future[Sequence[v1.Operation]] = Future()
        accepted.set_result([operation])
        created = OperationFuture(
            self._connection, accepted, lambda operations: operations[0].create_model.model_id
        )
        return self._training_model(created.result(), 1)

    def _training_model(self, model_id: str, next_seq_id: int) -> TrainingModel:
        model = TrainingModel(self._connection, model_id, next_seq_id, self._take_sampler_id)
        self._models.append(model)
        return model

    def _take_sampler_id(self) -> int:
        return next(self._sampler_ids)

    def _beat(self) -> None:
        request = v1.HeartbeatSessionRequest(session_id=self.session_id)
        while not self._ended.wait(self._interval) and not self._connection.is_closed:
            try:
                self._connection.call(
                    self._connection.sessions.HeartbeatSession,
                    request,
                    timeout=_HEARTBEAT_TIMEOUT,
                )
            except (FailedPrecondition, NotFound) as error:
                _log.warning("session %s has ended: %s", self.session_id, error)
                return
            except TinkergateError as error:
                _log.debug("heartbeat of session %s: %s", self.session_id, error)


def _ending(error: BaseException | None) -> tuple[str, str]:
    """How a `with` block ended: the reason and the words for FinishSession."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "success", ""
    if isinstance(error, (Exception, SystemExit)):
        return "errored", f"{type(error).__name__}: {error}"[:1000]
    return "interrupted", type(error).__name__  # KeyboardInterrupt, asyncio.CancelledError
