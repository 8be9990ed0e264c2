"""Runs: the models that trainers of this dialect train, and how far each has come.

What is kept here lives as long as the models do: a gateway that stops loses both, and a run of an
earlier one is told by its checkpoints.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from tinkergate.core.gateway import Gateway
from tinkergate.core.ids import parse_path
from tinkergate.dialects.loops.paths import LoopsPath, Target, loops_path
from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field
from tinkergate.ingress.loops_rest.ids import MAX_GENERATIONS, Place, place_of, run_of
from tinkergate.v1 import (
    Checkpoint,
    CreateModelRequest,
    GetCheckpointRequest,
    GetModelRequest,
    GetOperationRequest,
    LoraConfig,
    Model,
    Operation,
    OperationState,
    UnloadModelRequest,
    WaitOperationRequest,
)

MAX_KEYS = 10_000
"""How many calls of a run are known by their keys."""

MAX_GENERATIONS_KNOWN = 10_000
"""Of how many runs without a model it is remembered how often they were reset."""

NAME = "loops.name"
AVAILABILITY = "loops.availability_model"
"""Metadata of the models of runs."""

_KINDS: dict[str, Target] = {"weights": "trainer", "sampler_weights": "sampler"}
_DONE = frozenset(
    {
        OperationState.OPERATION_STATE_SUCCEEDED,
        OperationState.OPERATION_STATE_FAILED,
        OperationState.OPERATION_STATE_CANCELLED,
    }
)


@dataclass(frozen=True)
class Published:
    """Weights that a run's sampler serves."""

    version: int
    """Optimizer steps in them."""
    path: str
    """The canonical path of the checkpoint."""


@dataclass
class Run:
    """A run with a model."""

    place: Place
    """Of the model in use."""
    base_model: str
    """As the gateway names it."""
    lora: LoraConfig
    metadata: dict[str, str]
    max_seq_len: int | None = None
    backend: str = ""
    create_name: str = ""
    """The operation that made the model."""
    first_seq: int | None = None
    """The seq_id of the call that made the model ready: those of other calls are counted from it.
    None before it."""
    resetting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the run is reset."""
    touched: bool = False
    """Whether the model has been asked for anything."""
    keys: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """Operations by the keys of the calls that began them."""
    publishing: list[str] = field(default_factory=list)
    """Operations that publish weights, in their order, and are not known to be done."""
    live: Published | None = None
    """What the run's sampler serves; None for the base model."""

    @property
    def run_id(self) -> str:
        """The id."""
        return self.place.run_id

    @property
    def model_id(self) -> str:
        """The model in use."""
        return self.place.model_id

    def note_key(self, key: str, operation: str) -> None:
        """A call with this key has begun an operation."""
        if key:
            self.keys[key] = operation
            if len(self.keys) > MAX_KEYS:
                self.keys.popitem(last=False)


class Runs:
    """The runs of this dialect that have a model."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._runs: dict[str, Run] = {}
        self._generations: OrderedDict[str, int] = OrderedDict()
        """How often runs were reset that have no model any more, of those asked for last."""
        gateway.sessions.on_end.append(self._session_ended)

    def _session_ended(self, session_id: str) -> None:
        """The models of the session are unloaded."""
        for run in [r for r in self._runs.values() if r.place.session_id == session_id]:
            del self._runs[run.run_id]
            self._generations.pop(run.run_id, None)

    def find(self, run_id: str) -> Run | None:
        """The run, if it has a model."""
        return self._runs.get(run_id)

    def require(self, run_id: str) -> Run:
        """The run. Raises GatewayError (MODEL_NOT_FOUND, or MODEL_NOT_READY for one that this door
        did not make, or not since the gateway was started)."""
        run = self._runs.get(run_id)
        if run is not None:
            return run
        raise GatewayError(
            Kind.PRECONDITION,
            ErrorReason.ERROR_REASON_MODEL_NOT_READY,
            f"there is no trainer of run {run_id!r}: it was never made, or belongs to another door "
            "or to a gateway that stopped; its checkpoints, if there are any, can be gone on from",
        )

    async def create(
        self,
        session_id: str,
        base_model: str,
        lora: LoraConfig,
        metadata: dict[str, str],
        max_seq_len: int | None,
        backend: str = "",
    ) -> Run:
        """A new run. Raises GatewayError."""
        asked = CreateModelRequest(
            session_id=session_id,
            base_model=base_model,
            lora_config=lora,
            user_metadata=metadata,
            backend=backend,
        )
        operation = await self._gateway.models.create(asked)
        place = place_of(operation.model_id)
        assert place is not None
        run = Run(place, base_model, lora, metadata, max_seq_len, backend)
        run.create_name = operation.name
        model = await self.model(run)
        run.base_model, run.backend = model.base_model, model.backend
        self._runs[run.run_id] = run
        return run

    async def model(self, run: Run) -> Model:
        """The model in use."""
        found = await self._gateway.models.get(GetModelRequest(model_id=run.model_id))
        return found.model

    async def reset(self, run: Run, rank: int, seq_id: int | None) -> str:
        """Give the run a fresh adapter of that rank: the model that it was made with if nothing
        was done to it, else another. Answers the operation that makes it. Raises GatewayError."""
        if run.touched or run.lora.rank != rank:
            await self._renew(run, rank)
        run.touched = True
        run.first_seq = seq_id
        return run.create_name

    async def _renew(self, run: Run, rank: int) -> None:
        place = run.place._replace(generation=run.place.generation + 1)
        if place.generation > MAX_GENERATIONS:
            raise invalid_field("run_id", f"was reset {MAX_GENERATIONS} times; make a new run")
        lora = LoraConfig()
        lora.CopyFrom(run.lora)
        lora.rank = rank
        _, _, number = place.model_id.rpartition(":")
        asked = CreateModelRequest(
            session_id=place.session_id,
            model_seq_id=int(number),
            base_model=run.base_model,
            lora_config=lora,
            user_metadata=run.metadata,
            backend=run.backend,
        )
        operation = await self._gateway.models.create(asked)
        old = run.model_id
        run.place, run.lora, run.create_name = place, lora, operation.name
        run.publishing.clear()
        run.live = None
        await self._gateway.models.unload(UnloadModelRequest(model_id=old))

    async def deactivate(self, run_id: str) -> None:
        """Free a run's model after what was submitted before. Runs without one are no error."""
        run = self._runs.pop(run_id, None)
        self._generations.pop(run_id, None)
        if run is not None:
            await self._gateway.models.unload(UnloadModelRequest(model_id=run.model_id))

    async def published(self, run: Run, least: int, limit: float) -> Published | None:
        """What the run's sampler serves now; if that is a version under `least`, and others are on
        the way, after waiting for them for at most `limit` seconds."""
        while run.publishing:
            behind = (run.live.version if run.live else 0) < least
            name = run.publishing[0]
            try:
                operation = await self._operation(name, limit if behind else 0)
            except GatewayError:
                # Nobody has asked for so long that it is forgotten.
                if name in run.publishing:
                    run.publishing.remove(name)
                continue
            if operation.state not in _DONE:
                break
            if name in run.publishing:
                run.publishing.remove(name)
                self._take(run, operation)
        return run.live

    async def _operation(self, name: str, limit: float) -> Operation:
        """An operation, once it is done or after `limit` seconds."""
        if limit <= 0:
            asked = GetOperationRequest(name=name)
            return (await self._gateway.operations.get(asked)).operation
        wait = WaitOperationRequest(name=name)
        wait.timeout.FromNanoseconds(round(limit * 1e9))
        return (await self._gateway.operations.wait(wait)).operation

    def _take(self, run: Run, operation: Operation) -> None:
        saved = operation.save_weights_for_sampler
        if saved.optimizer_steps > 0:
            run.live = Published(saved.optimizer_steps, saved.path)

    async def canonical(self, field: str, path: str) -> str:
        """The canonical path of a checkpoint by its `bt://` path: the newest of its name among the
        models of the run; if there is none, as the model in use would save it. Raises GatewayError
        (INVALID) for a path of another form."""
        parsed = self.parse(field, path)
        place = place_of(parsed.run_id)
        assert place is not None
        newest = self._newest_generation(place.run_id)
        paths = [
            parsed._replace(run_id=place._replace(generation=generation).model_id).canonical
            for generation in range(newest, -1, -1)
        ]
        for candidate in paths:
            try:
                return (await self.checkpoint(candidate)).path
            except GatewayError as error:
                if error.kind is not Kind.NOT_FOUND:
                    raise
        return paths[0]

    def _newest_generation(self, run_id: str) -> int:
        """How often a run was reset, as far as its checkpoints show."""
        run = self._runs.get(run_id)
        if run is not None:
            return run.place.generation
        if run_id not in self._generations:
            places = (place_of(each.model_id) for each in self.checkpoints())
            own = [p.generation for p in places if p is not None and p.run_id == run_id]
            self._generations[run_id] = max(own, default=0)
            if len(self._generations) > MAX_GENERATIONS_KNOWN:
                self._generations.popitem(last=False)
        return self._generations[run_id]

    @staticmethod
    def parse(field: str, path: str) -> LoopsPath:
        """A checkpoint's path taken apart. Raises GatewayError (INVALID)."""
        parsed = loops_path(path)
        if parsed is None or place_of(parsed.run_id) is None:
            raise invalid_field(
                field,
                f"is {path[:700]!r}; must be bt://loops:<run_id>/weights/<name> or "
                "bt://loops:<run_id>/sampler_weights/<name> of a run of this gateway",
            )
        return parsed

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints that this dialect has a form for, newest first."""
        held: list[Checkpoint] = []
        while True:
            window = self._gateway.checkpoints.window(len(held), 1000)
            held += window.items
            if not window.items or len(held) >= window.total:
                return [each for each in held if loops_form(each) is not None]

    async def checkpoint(self, canonical: str) -> Checkpoint:
        """One checkpoint. Raises GatewayError (NOT_FOUND)."""
        asked = GetCheckpointRequest(path=canonical)
        return (await self._gateway.checkpoints.get(asked)).checkpoint


def loops_form(checkpoint: Checkpoint) -> LoopsPath | None:
    """A checkpoint's path as this dialect tells it; None for what it has no form for."""
    return loops_form_of(checkpoint.path)


def loops_form_of(canonical: str) -> LoopsPath | None:
    """As `loops_form`, by the canonical path."""
    path = parse_path(canonical)
    if path is None or path.kind not in _KINDS or place_of(path.model_id) is None:
        return None
    return LoopsPath(run_of(path.model_id), _KINDS[path.kind], path.name)
