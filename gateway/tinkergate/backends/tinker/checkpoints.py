"""What is done to checkpoints at the service: removing, copying, adding up (wire sections 13.2 and
15.3)."""

from __future__ import annotations

from tinkergate.backends.base import SavedCheckpoint
from tinkergate.backends.known_checkpoints import KnownCheckpoint, KnownCheckpoints
from tinkergate.backends.tinker.futures import FutureLost, Futures, accepted
from tinkergate.backends.tinker.models import unnoticed
from tinkergate.backends.tinker.rest_paths import rest_path
from tinkergate.backends.tinker.service import Call, Service, nothing
from tinkergate.backends.tinker.sessions import SHARED, UpstreamSessions
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.write_requests import interpolate_json
from tinkergate.errors import GatewayError, Kind, unsupported
from tinkergate.http import Answer
from tinkergate.v1 import Checkpoint, CheckpointType, InterpolateCheckpointsRequest


class UpstreamCheckpoints:
    """The checkpoints at the service."""

    def __init__(
        self,
        service: Service,
        futures: Futures,
        sessions: UpstreamSessions,
        known: KnownCheckpoints,
    ) -> None:
        self._service = service
        self._futures = futures
        self._sessions = sessions
        self._known = known
        self._mint = service.settings.dialect == "mint"

    async def remove(self, upstream_path: str) -> None:
        """Remove what the service calls by a path. One that it does not know is no error. Where
        the service has no way to remove it, the log says that it stays."""
        rest = None if self._mint else rest_path(upstream_path)
        if rest is None:
            self._service.note(
                f"removing {upstream_path}",
                unsupported("removing checkpoints: it stays there", self._service.name),
            )
            return
        call = Call(f"removing {upstream_path}", rest.route, method="DELETE")
        try:
            await self._service.call(call, nothing)
        except GatewayError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise

    async def copy(self, source: str, checkpoint: Checkpoint) -> SavedCheckpoint:
        """Make `checkpoint.path` of the same weights as `source`, by copy_weights."""
        if self._mint:
            raise unsupported("copying of checkpoints", self._service.name)
        known = self._known.find(source)
        session = await self._sessions.use(SHARED)
        try:
            body = {
                "source_path": known.upstream_path,
                "session_id": session.session_id,
                "model_seq_id": session.next_model(),
            }
            call = Call(f"copy_weights of {source}", "copy_weights", body)
            path = await self._service.call(
                call, lambda answer: Fields(read_json(answer.body)).text("tinker_path")
            )
        finally:
            self._sessions.release(SHARED)
        copied = KnownCheckpoint(
            path,
            known.base_model,
            known.lora_config,
            known.optimizer_config,
            known.optimizer_steps,
            known.training,
        )
        self._known.note(checkpoint.path, copied)
        return SavedCheckpoint(0, known.training, path)

    async def interpolate(
        self, request: InterpolateCheckpointsRequest, checkpoint: Checkpoint
    ) -> SavedCheckpoint:
        """Make `checkpoint.path` of the weighted sum of others."""
        if not self._mint:
            raise unsupported("interpolation of checkpoints", self._service.name)
        sources = [self._known.find(path) for path in request.source_paths]
        training = request.output_type == CheckpointType.CHECKPOINT_TYPE_TRAINING
        body = interpolate_json(
            [source.upstream_path for source in sources],
            request.coefficients,
            "training" if training else "sampler",
        )
        call = Call(f"interpolation of {checkpoint.path}", "mint/checkpoints/interpolate", body)
        work = await self._service.call(call, accepted(call, "MintInterpolateCheckpoints"))

        def read(answer: Answer) -> str:
            return Fields(read_json(answer.body)).text("path")

        try:
            path = await self._futures.result(work, read, on_state=unnoticed)
        except FutureLost as lost:
            raise lost.error from None
        first = sources[0]
        made = KnownCheckpoint(path, first.base_model, checkpoint.lora_config, training=training)
        if not made.lora_config.HasField("rank"):
            made.lora_config.CopyFrom(first.lora_config)
        self._known.note(checkpoint.path, made)
        return SavedCheckpoint(0, False, path)
