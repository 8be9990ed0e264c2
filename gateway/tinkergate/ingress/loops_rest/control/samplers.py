"""Samplers: making, listing and ending them (wire sections 4.3 and 4.4)."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.errors import invalid_field
from tinkergate.ingress.loops_rest.bodies import body_of
from tinkergate.ingress.loops_rest.context import CONTROL, Context
from tinkergate.ingress.loops_rest.control.forms import USER, both, iso, not_found
from tinkergate.ingress.loops_rest.ids import new_sampler, paired_sampler, sampler_key
from tinkergate.ingress.loops_rest.known_samplers import KnownSampler
from tinkergate.ingress.loops_rest.sources import base_model_of
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import GetSessionRequest


def routes(context: Context) -> list[Route]:
    """The routes."""
    samplers = _Samplers(context)
    one = f"{CONTROL}loops/samplers/{{sampler_id}}"
    return [
        *both("samplers", samplers.create, "POST"),
        *both("samplers", samplers.list_all, "GET"),
        Route(one, samplers.get, methods=["GET"]),
        Route(f"{one}/deactivate", samplers.deactivate, methods=["POST"]),
        Route(
            f"{CONTROL}models/{{model_id}}/deployments/{{deployment_id}}",
            samplers.status,
            methods=["GET"],
        ),
    ]


class _Samplers:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def create(self, request: Request) -> Response:
        """A sampler of a run, which is the same each time, of a base model, or of a checkpoint. How
        many replicas it has and what capacity it takes makes no difference here."""
        fields = (await body_of(request)).fields
        session = GetSessionRequest(session_id=fields.text("session_id"))
        await self._context.gateway.sessions.get(session)
        given = [name for name in ("run_id", "base_model", "model_path") if name in fields]
        if len(given) != 1:
            raise invalid_field(
                "run_id", f"one of run_id, base_model and model_path is needed, not {given}"
            )
        match given[0]:
            case "run_id":
                sampler_id = paired_sampler(fields.text("run_id"))
                if sampler_key(sampler_id) is None:
                    raise fields.wrong("run_id", "must be the id of a run")
            case "base_model":
                sampler_id = new_sampler(base_model=fields.text("base_model"))
            case _:
                path = self._context.runs.parse("model_path", fields.text("model_path"))
                sampler_id = new_sampler(checkpoint=path)
        key = sampler_key(sampler_id)
        assert key is not None
        base_model = await base_model_of(self._context, key)
        await self._check(base_model, fields.optional_integer("max_seq_length"))
        known = self._context.samplers.note(sampler_id, base_model)
        return json_response({"sampler": sampler_form(self._context, request, known)})

    async def _check(self, base_model: str, longest: int | None) -> None:
        capabilities = await self._context.gateway.capabilities()
        model = next((m for m in capabilities.models if base_model in (m.name, *m.aliases)), None)
        if model is None or not model.sampleable:
            raise not_found(f"there is no base model {base_model[:300]!r} to sample from")
        most = model.max_context_length
        if longest is not None and not 1 <= longest <= (most or longest):
            raise invalid_field("max_seq_length", f"is {longest}; must be from 1 to {most}")

    async def list_all(self, request: Request) -> Response:
        """The samplers that were made since the gateway was started, newest first."""
        told = [
            sampler_form(self._context, request, known)
            for known in self._context.samplers.newest_first()
        ]
        return json_response({"samplers": told})

    async def get(self, request: Request) -> Response:
        """One sampler."""
        known = await self._known(request.path_params["sampler_id"])
        return json_response({"sampler": sampler_form(self._context, request, known)})

    async def deactivate(self, request: Request) -> Response:
        """Ends a sampler: it draws no more."""
        known = await self._known(request.path_params["sampler_id"])
        self._context.samplers.note(known.sampler_id, known.base_model)
        self._context.samplers.end(known.sampler_id)
        return json_response({"id": known.sampler_id, "base_model": known.base_model, "user": USER})

    async def status(self, request: Request) -> Response:
        """The state of a dedicated sampler's deployment."""
        model_id, wanted = request.path_params["model_id"], request.path_params["deployment_id"]
        if self._context.serverless or wanted != model_id:
            raise not_found(f"model {model_id[:300]!r} has no deployment {wanted[:300]!r}")
        known = await self._known(model_id)
        return json_response({"id": wanted, "status": "INACTIVE" if known.ended else "ACTIVE"})

    async def _known(self, sampler_id: str) -> KnownSampler:
        """The sampler. Raises GatewayError (NOT_FOUND)."""
        known = self._context.samplers.find(sampler_id)
        if known is not None:
            return known
        key = sampler_key(sampler_id)
        if key is None:
            raise not_found(f"there is no sampler {sampler_id[:300]!r}")
        return KnownSampler(sampler_id, await base_model_of(self._context, key))


def sampler_form(context: Context, request: Request, known: KnownSampler) -> dict[str, object]:
    """A sampler as it is told. Its model and its deployment go by its own id."""
    dedicated = not context.serverless
    return {
        "id": known.sampler_id,
        "base_url": context.sampler_url(request, known.sampler_id),
        "base_model": known.base_model,
        "base_checkpoint": None,
        "created_at": iso(Timestamp(seconds=known.created)),
        "model_id": known.sampler_id if dedicated else None,
        "deployment_id": known.sampler_id if dedicated else None,
        "status": {"name": "INACTIVE" if known.ended else "ACTIVE"},
        "user": USER,
        "instance_type": None,
        "node_count": 1,
    }
