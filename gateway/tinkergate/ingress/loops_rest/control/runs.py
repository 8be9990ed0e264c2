"""Runs: making, listing and ending them (wire sections 4.2 and 4.6)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.core.training_runs import TrainingRun
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import invalid_field
from tinkergate.ingress.loops_rest.bodies import body_of
from tinkergate.ingress.loops_rest.context import CONTROL, Context
from tinkergate.ingress.loops_rest.control.forms import USER, both, iso, not_found
from tinkergate.ingress.loops_rest.control.samplers import sampler_form
from tinkergate.ingress.loops_rest.ids import paired_sampler, place_of, run_of
from tinkergate.ingress.loops_rest.runs import AVAILABILITY, NAME
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import Checkpoint, LoraConfig, Model, ModelState

DEFAULT_RANK = 64
AVAILABILITIES = ("dedicated", "spot")
MAX_NAME = 255

_ALIVE = frozenset({ModelState.MODEL_STATE_CREATING, ModelState.MODEL_STATE_READY})


def routes(context: Context) -> list[Route]:
    """The routes."""
    runs = _Runs(context)
    return [
        *both("trainers", runs.create, "POST"),
        *both("runs", runs.create_both, "POST"),
        *both("runs", runs.list_all, "GET"),
        Route(f"{CONTROL}loops/runs/{{run_id}}", runs.get, methods=["GET"]),
        Route(f"{CONTROL}loops/runs/{{run_id}}/deactivate", runs.deactivate, methods=["POST"]),
    ]


class _Runs:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def create(self, request: Request) -> Response:
        """A new run. How many replicas it has, what capacity it takes and what it reuses is
        accepted, and makes no difference here."""
        return await self._create(request, with_sampler=False)

    async def create_both(self, request: Request) -> Response:
        """A new run and its sampler."""
        return await self._create(request, with_sampler=True)

    async def _create(self, request: Request, *, with_sampler: bool) -> Response:
        fields = (await body_of(request)).fields
        source = await self._source(fields)
        base_model = fields.text("base_model")
        for name in ("replicas", "scale_down_delay_seconds"):
            _positive(fields, name)
        if "base_checkpoint" in fields:
            raise fields.wrong(
                "base_checkpoint", "must be absent: the gateway serves base models as they are"
            )
        run = await self._context.runs.create(
            fields.text("session_id"),
            base_model,
            _lora(fields, source),
            _metadata(fields),
            _positive(fields, "max_seq_len"),
            "" if source is None else source.backend,
        )
        model = await self._context.runs.model(run)
        if run.max_seq_len is not None and 0 < model.max_context_length < run.max_seq_len:
            longest = model.max_context_length
            await self._context.runs.deactivate(run.run_id)
            raise fields.wrong("max_seq_len", f"must be at most {longest} for this base model")
        told = self._form(request, model, with_sampler=with_sampler)
        return json_response({"run": told})

    async def _source(self, fields: Fields) -> Checkpoint | None:
        """The checkpoint that the run is to go on from. The SDK loads it after it has reset the
        trainer, so all that it decides here is the kind of adapter."""
        path = fields.optional_text("path")
        if path is None:
            return None
        canonical = await self._context.runs.canonical("path", path)
        return await self._context.runs.checkpoint(canonical)

    async def list_all(self, request: Request) -> Response:
        """All runs, newest first: of one base model, or one of them, if that is asked for."""
        query = request.query_params
        base_model, run_id = query.get("base_model"), query.get("run_id")
        told = [
            self._form(request, run.model)
            for run in all_runs(self._context)
            if base_model in (None, run.model.base_model)
            and run_id in (None, run_of(run.model.model_id))
        ]
        return json_response({"runs": told})

    async def get(self, request: Request) -> Response:
        """One run."""
        model = require_model(self._context, request.path_params["run_id"])
        return json_response({"run": self._form(request, model)})

    async def deactivate(self, request: Request) -> Response:
        """Frees the trainer of a run and ends its sampler. Its checkpoints stay."""
        model = require_model(self._context, request.path_params["run_id"])
        await end_run(self._context, model)
        told = {"id": run_of(model.model_id), "base_model": model.base_model, "user": USER}
        return json_response(told)

    def _form(
        self, request: Request, model: Model, *, with_sampler: bool = False
    ) -> dict[str, object]:
        run_id = run_of(model.model_id)
        samplers = self._context.samplers
        if with_sampler:
            samplers.note(paired_sampler(run_id), model.base_model)
        sampler = samplers.find(paired_sampler(run_id))
        dedicated = not self._context.serverless
        alive = model.state in _ALIVE and self._context.runs.find(run_id) is not None
        return {
            "id": run_id,
            "session_id": model.session_id,
            "deployment_id": deployment_id(run_id) if dedicated else None,
            "name": model.user_metadata.get(NAME) or model.base_model,
            "base_model": model.base_model,
            "base_checkpoint": None,
            "base_url": self._context.trainer_url(request, run_id),
            "created_at": iso(model.create_time),
            "status": {"name": "ACTIVE" if alive else "INACTIVE"},
            "user": USER,
            "sampler": sampler and sampler_form(self._context, request, sampler),
        }


def all_runs(context: Context) -> list[TrainingRun]:
    """The training runs of the gateway, newest first, one for all models of a run: the newest."""
    newest: dict[str, TrainingRun] = {}
    generations: dict[str, int] = {}
    seen = 0
    while True:
        window = context.gateway.training_runs.window(seen, 1000)
        seen += len(window.items)
        for run in window.items:
            place = place_of(run.model.model_id)
            if place is None:
                continue
            if place.generation >= generations.get(place.run_id, 0):
                generations[place.run_id] = place.generation
                newest[place.run_id] = run
        if not window.items or seen >= window.total:
            return list(newest.values())


def require_model(context: Context, run_id: str) -> Model:
    """The newest model of a run. Raises GatewayError (NOT_FOUND)."""
    run = context.runs.find(run_id)
    if run is not None:
        return context.gateway.training_runs.get(run.model_id).model
    for found in all_runs(context):
        if run_of(found.model.model_id) == run_id:
            return found.model
    raise not_found(f"there is no run {run_id[:300]!r}")


async def end_run(context: Context, model: Model) -> None:
    """Free the trainer of the model's run, and end its sampler."""
    run_id = run_of(model.model_id)
    await context.runs.deactivate(run_id)
    context.samplers.end(paired_sampler(run_id))


def deployment_id(run_id: str) -> str:
    """The deployment of a run's own trainer."""
    return f"{run_id}:deployment"


def _lora(fields: Fields, source: Checkpoint | None) -> LoraConfig:
    """The adapter as Loops has it: on attention and feed-forward, not on the unembedding (wire
    section 13.1). One that is to go on from a checkpoint has its kind."""
    config = LoraConfig(train_mlp=True, train_attn=True, train_unembed=False)
    if source is not None and source.HasField("lora_config"):
        config.CopyFrom(source.lora_config)
        config.ClearField("seed")
    config.rank = _positive(fields, "lora_rank") or DEFAULT_RANK
    if (seed := fields.optional_integer("seed", bits=64)) is not None:
        config.seed = seed
    return config


def _metadata(fields: Fields) -> dict[str, str]:
    metadata = {}
    if (name := fields.optional_text("name")) is not None:
        if not 1 <= len(name) <= MAX_NAME:
            raise fields.wrong("name", f"must have 1 to {MAX_NAME} characters")
        metadata[NAME] = name
    availability = fields.optional_text("availability_model")
    if availability is not None:
        if availability not in AVAILABILITIES:
            raise fields.wrong("availability_model", f"must be one of {AVAILABILITIES}")
        metadata[AVAILABILITY] = availability
    return metadata


def _positive(fields: Fields, name: str) -> int | None:
    value = fields.optional_integer(name)
    if value is not None and value < 1:
        raise invalid_field(fields.path(name), f"is {value}; must be at least 1")
    return value
