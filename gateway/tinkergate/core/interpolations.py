"""InterpolateCheckpoints: the weighted sum of checkpoints, under a training run of its own."""

from __future__ import annotations

from tinkergate.backends.base import SavedCheckpoint
from tinkergate.core.admission import Admission
from tinkergate.core.background import Background
from tinkergate.core.checkpoint_registry import TYPES, CheckpointRegistry, set_times
from tinkergate.core.clock import Clock
from tinkergate.core.faults import as_gateway_error
from tinkergate.core.identity import request_hash
from tinkergate.core.ids import (
    SAMPLER_WEIGHTS,
    WEIGHTS,
    CheckpointPath,
    new_sum_id,
    operation_name,
    session_of,
)
from tinkergate.core.operation_record import Record
from tinkergate.core.operation_table import OperationTable
from tinkergate.core.router import Route, Router
from tinkergate.core.sessions import Sessions
from tinkergate.core.validation.mint import check_interpolation
from tinkergate.core.validation.models import ADAMW
from tinkergate.errors import invalid_field, unsupported
from tinkergate.v1 import (
    Checkpoint,
    CheckpointType,
    InterpolateCheckpointsRequest,
    InterpolateCheckpointsResult,
    LoraConfig,
    Operation,
    OperationKind,
    OptimizerConfig,
)

DEFAULT_NAME = "interpolated"


class Interpolations:
    """Adds up checkpoints. The operation belongs to no model."""

    def __init__(
        self,
        clock: Clock,
        admission: Admission,
        router: Router,
        sessions: Sessions,
        table: OperationTable,
        registry: CheckpointRegistry,
        background: Background,
    ) -> None:
        self._clock = clock
        self._admission = admission
        self._router = router
        self._sessions = sessions
        self._table = table
        self._registry = registry
        self._background = background

    async def submit(self, request: InterpolateCheckpointsRequest) -> Operation:
        """Answer InterpolateCheckpoints. The same request_id answers the same operation. Raises
        INVALID, NOT_FOUND, CONFLICT or UNSUPPORTED."""
        paths = check_interpolation(request)
        for path in paths:
            self._sessions.heard(session_of(path.model_id))
        identity = f"request_id {request.request_id!r} of an interpolation"
        identity, hashed = (identity, request_hash(request)) if request.request_id else ("", b"")
        known = self._table.repeated(identity, hashed) if identity else None
        if known is None:
            self._admission.check()
            route = await self._route(request)
            # Others ran while the route was looked up.
            known = self._table.repeated(identity, hashed) if identity else None
        if known is not None:
            return known.fill(Operation())
        checkpoint = self._described(request, route)
        record = self._table.add(
            name=operation_name(checkpoint.model_id, "interpolate"),
            kind=OperationKind.OPERATION_KIND_INTERPOLATE_CHECKPOINTS,
            model_id="",
            identity=identity,
            request_hash=hashed,
        )
        work = self._make(record, request, checkpoint, route)
        self._background.run(work, f"making {checkpoint.path}")
        return record.fill(Operation())

    async def _route(self, request: InterpolateCheckpointsRequest) -> Route:
        """The backend and the base model that all sources have in common."""
        sources = [self._registry.require(path).message for path in request.source_paths]
        first = sources[0]
        for index, source in enumerate(sources):
            for what in ("base_model", "backend"):
                here, there = getattr(source, what), getattr(first, what)
                if here != there:
                    raise invalid_field(
                        f"source_paths[{index}]",
                        f"is {source.path!r} with {what} {here!r}; source_paths[0] has {there!r}",
                    )
        route = await self._router.route(first.base_model, first.backend)
        if not route.facts.abilities.capabilities.checkpoint_interpolation:
            raise unsupported("interpolation of checkpoints", route.backend.name)
        return route

    def _described(self, request: InterpolateCheckpointsRequest, route: Route) -> Checkpoint:
        training = request.output_type == CheckpointType.CHECKPOINT_TYPE_TRAINING
        path = CheckpointPath(
            new_sum_id(),
            WEIGHTS if training else SAMPLER_WEIGHTS,
            request.output_name or DEFAULT_NAME,
        )
        checkpoint = Checkpoint(
            path=str(path),
            checkpoint_id=path.checkpoint_id,
            type=TYPES[path.kind],
            model_id=path.model_id,
            base_model=route.model.name,
            optimizer_config=OptimizerConfig(type=ADAMW),
            backend=route.backend.name,
        )
        set_times(checkpoint, self._clock.now(), ttl=None)
        return checkpoint

    async def _make(
        self,
        record: Record,
        request: InterpolateCheckpointsRequest,
        checkpoint: Checkpoint,
        route: Route,
    ) -> None:
        self._table.start(record)
        to_make = Checkpoint()
        to_make.CopyFrom(checkpoint)
        to_make.base_model = route.upstream_name
        try:
            saved = await route.backend.interpolate_checkpoints(request, to_make)
        except BaseException as error:
            self._table.fail(record, as_gateway_error(error, "interpolating checkpoints"))
            if not isinstance(error, Exception):
                raise
            return
        self._note(checkpoint, saved)
        result = InterpolateCheckpointsResult(
            path=checkpoint.path,
            source_paths=request.source_paths,
            coefficients=request.coefficients,
        )
        self._table.succeed(record, result)

    def _note(self, checkpoint: Checkpoint, saved: SavedCheckpoint) -> None:
        checkpoint.size_bytes, checkpoint.upstream_path = saved.size_bytes, saved.upstream_path
        checkpoint.lora_config.CopyFrom(saved.lora_config or LoraConfig())
        checkpoint.lora_rank = checkpoint.lora_config.rank
        self._registry.add(checkpoint, saved.has_optimizer)
