"""Samplers: drawing from a run's newest weights, a checkpoint or a base model (wire section 8).

Dedicated samplers answer with the completion, shared ones with an operation to ask for.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.dialects.loops.read_requests import sample_request
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field
from tinkergate.ingress.loops_rest.bodies import Body, body_of
from tinkergate.ingress.loops_rest.completions import Completions, Drawing
from tinkergate.ingress.loops_rest.context import SAMPLERS, Context
from tinkergate.ingress.loops_rest.errors import marked
from tinkergate.ingress.loops_rest.identity import CHECKPOINT, UNKNOWN, check_sampler
from tinkergate.ingress.loops_rest.ids import SamplerKey, place_of, sampler_key
from tinkergate.ingress.loops_rest.results import PENDING, failure
from tinkergate.ingress.loops_rest.runs import loops_form_of
from tinkergate.ingress.loops_rest.sources import base_model_of
from tinkergate.ingress.loops_rest.trainers import accepted
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import SampleRequest

FLOOR = "x-min-policy-version"
VERSION = "x-trainers-policy-version"

LOOK = 2.0
"""How often a call that is held open looks for its caller, in seconds."""


def routes(context: Context) -> list[Route]:
    """The routes."""
    samplers = _Samplers(context)
    base = f"{SAMPLERS}{{sampler_id}}"
    found = []
    for place in (base, f"{base}/sync"):
        found += [
            Route(f"{place}/sample", samplers.sample, methods=["POST"]),
            Route(
                f"{place}/operations/{{operation_id:path}}/cancel",
                samplers.cancel,
                methods=["POST"],
            ),
            Route(f"{place}/operations/{{operation_id:path}}", samplers.poll, methods=["GET"]),
            Route(f"{place}/v1/models", samplers.models, methods=["GET"]),
            Route(f"{place}/trainers_policy_version", samplers.policy_version, methods=["GET"]),
            Route(f"{place}/wake", samplers.wake, methods=["POST"]),
        ]
    return found


class _Behind(Exception):
    """The live weights are older than the caller asks for."""


class _Samplers:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._futures = context.gateway.sample_futures
        self._completions = Completions(context.gateway)

    async def sample(self, request: Request) -> Response:
        """Begins to draw; shared samplers answer at once, dedicated ones with what was drawn."""
        key = self._sampler(request)
        body = await body_of(request)
        call = request.headers.get("idempotency-key", "")
        if self._context.serverless:
            _check_queued(body.fields, call)
        known = self._completions.known(key.sampler_id, call)
        if known is None:
            try:
                drawing = await self._drawing(request, key, body)
            except _Behind as behind:
                return json_response({"detail": str(behind)}, 408)
            known = await self._completions.begin(key.sampler_id, call, drawing)
        if self._context.serverless:
            url = self._context.sampler_url(request, key.sampler_id)
            return accepted(known, f"{url}/operations/{known}")
        return await self._held(request, known)

    async def _held(self, request: Request, name: str) -> Response:
        """The completion, once it is there. A caller who goes away stops the work."""
        while True:
            told = await self._completions.wait(name, LOOK)
            if told is not None:
                version = self._completions.version(name)
                headers = {} if version is None else {VERSION: str(version)}
                return Response(told, 200, headers, media_type="application/json")
            if await request.is_disconnected():
                self._completions.cancel(name)

    async def _drawing(self, request: Request, key: SamplerKey, body: Body) -> Drawing:
        """What to draw: from the checkpoint that is named, else from the run's live weights, else
        from what the sampler is of. A floor that the live weights have reached goes before a
        checkpoint. Raises _Behind."""
        asked = await body.read(sample_request)
        path = _one_path(request, body.fields)
        floor = _floor(request)
        paired = bool(key.run_id) and not self._context.serverless
        live = None
        # A run that is gone has no live weights, but its checkpoints are there.
        if paired and (not path or self._context.runs.find(key.run_id) is not None):
            run = self._context.runs.require(key.run_id)
            # With a checkpoint to fall back on, nothing has to be waited for.
            least = 0 if path else floor
            live = await self._context.runs.published(run, least, self._context.poll_limit)
        version = live.version if live is not None else 0
        if path and not (floor and version >= floor):
            return await self._of_checkpoint(asked, CHECKPOINT, path)
        if paired:
            if floor > version:
                raise _Behind(f"the live weights have version {version}, not yet {floor}")
            if live is not None:
                asked.model_path = live.path
                told = str(loops_form_of(live.path))
                return Drawing(asked, told, await base_model_of(self._context, key), version)
        if key.checkpoint:
            return await self._of_checkpoint(asked, "sampler_id", key.checkpoint)
        asked.base_model = base_model = await base_model_of(self._context, key)
        return Drawing(asked, base_model, base_model, version if paired else None)

    async def _of_checkpoint(self, asked: SampleRequest, field: str, path: str) -> Drawing:
        asked.model_path = await self._context.runs.canonical(field, path)
        checkpoint = await self._context.runs.checkpoint(asked.model_path)
        return Drawing(asked, path, checkpoint.base_model)

    async def poll(self, request: Request) -> Response:
        """What was drawn, or 408 when it is not there yet."""
        self._sampler(request)
        request.scope["state"]["quiet"] = True
        name = request.path_params["operation_id"]
        try:
            told = await self._completions.wait(name, self._context.poll_limit, wrapped=True)
        except GatewayError as error:
            if error.reason == ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND:
                raise
            return failure(error.to_operation_error())
        if told is None:
            return json_response(PENDING, 408)
        return Response(told, media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        """Gives a call up: 200 if that stopped it, 409 if it was done."""
        self._sampler(request)
        name = request.path_params["operation_id"]
        if self._completions.cancel(name):
            return json_response({"status": "cancelled"})
        return json_response({"detail": "the operation is done"}, 409)

    async def models(self, request: Request) -> Response:
        """The base model, and the adapter that is served if there is one."""
        key = self._sampler(request)
        base_model = await base_model_of(self._context, key)
        told = [{"id": base_model, "object": "model", "parent": None}]
        adapter = key.checkpoint
        run = self._context.runs.find(key.run_id) if key.run_id else None
        if run is not None and (live := await self._context.runs.published(run, 0, 0)):
            adapter = str(loops_form_of(live.path))
        if adapter:
            told.append({"id": adapter, "object": "model", "parent": base_model})
        return json_response({"object": "list", "data": told})

    async def policy_version(self, request: Request) -> Response:
        """The version of the weights that are served."""
        key = self._sampler(request)
        run = self._context.runs.find(key.run_id) if key.run_id else None
        live = None if run is None else await self._context.runs.published(run, 0, 0)
        return json_response({"policy_version": 0 if live is None else live.version})

    async def wake(self, request: Request) -> Response:
        """Nothing sleeps here."""
        self._key(request)
        return json_response({})

    def _sampler(self, request: Request) -> SamplerKey:
        key = self._key(request)
        check_sampler(self._context, request, key)
        if (place := place_of(key.run_id)) is not None:
            # Programs that only sample keep their run too.
            self._context.gateway.sessions.heard(place.session_id)
        return key

    def _key(self, request: Request) -> SamplerKey:
        key = sampler_key(request.path_params["sampler_id"])
        if key is None:
            error = GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND,
                f"there is no sampler {request.path_params['sampler_id'][:300]!r}",
            )
            raise marked(error, UNKNOWN) if self._context.serverless else error
        known = self._context.samplers.find(key.sampler_id)
        if known is not None and known.ended:
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_MODEL_NOT_READY,
                f"sampler {key.sampler_id!r} was deactivated",
            )
        return key


def _check_queued(fields: Fields, call: str) -> None:
    """What the queue asks of a call (wire section 8.6)."""
    if not call:
        raise invalid_field("Idempotency-Key", "is not sent; the queue knows calls by it")
    fields.text("model")


def _one_path(request: Request, fields: Fields) -> str:
    """The checkpoint that is asked for; empty for none."""
    path = request.headers.get(CHECKPOINT, "")
    lora = fields.optional_text("lora")
    if lora is not None and lora != path:
        raise fields.wrong("lora", f"must be the path in X-Checkpoint-Path, {path!r}")
    return path


def _floor(request: Request) -> int:
    """The least version of live weights that will do; 0 for any."""
    text = request.headers.get(FLOOR, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise invalid_field("X-Min-Policy-Version", f"is {text[:80]!r}; must be a number from 0")
    return int(text)
