"""Models: making them, looking at them, unloading them (wire sections 5.1, 5.2, 5.8b and 5.10)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.read_requests import (
    create_from_checkpoint_request,
    create_model_request,
)
from tinkergate.dialects.tinker.write_results import model_to_json
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.ingress.tinker_rest.futures import LOAD_CREATE
from tinkergate.v1 import CreateModelRequest, GetModelRequest, Operation, UnloadModelRequest

FREE = f"{API}/models/{{model_id}}"
"""MinT's own way to unload a model (wire section 13.4)."""


def routes(context: Context) -> list[Route]:
    """The routes."""
    models = _Models(context)
    return [
        Route(f"{API}/create_model", models.create, methods=["POST"]),
        Route(f"{API}/get_info", models.get_info, methods=["POST"]),
        Route(f"{API}/unload_model", models.unload, methods=["POST"]),
        Route(FREE, models.free, methods=["DELETE"]),
    ]


class _Models:
    def __init__(self, context: Context) -> None:
        self._models = context.gateway.models

    async def create(self, request: Request) -> Response:
        """A new model on a base model."""
        asked = create_model_request(await json_fields(request))
        _note_request_id(asked, request)
        return future_response(await self._models.create(asked))

    async def get_info(self, request: Request) -> Response:
        """What a model is."""
        fields = await json_fields(request)
        found = await self._models.get(GetModelRequest(model_id=fields.text("model_id")))
        return json_response(model_to_json(found.model))

    async def unload(self, request: Request) -> Response:
        """Frees a model."""
        fields = await json_fields(request)
        asked = UnloadModelRequest(model_id=fields.text("model_id"))
        return future_response(await self._models.unload(asked))

    async def free(self, request: Request) -> Response:
        """Frees a model after what was submitted before; nobody is told when that is done."""
        asked = UnloadModelRequest(model_id=request.path_params["model_id"])
        await self._models.unload(asked)
        return Response(status_code=204)


async def create_from_checkpoint(context: Context, fields: Fields, request: Request) -> Response:
    """A new model that begins with a checkpoint: load_weights without a model_id."""
    asked = create_from_checkpoint_request(fields)
    _note_request_id(asked, request)
    operation = await context.gateway.models.create(asked)
    return future_response(operation, suffix=LOAD_CREATE)


def _note_request_id(asked: CreateModelRequest, request: Request) -> None:
    """What makes a retry the same call, where the client does not count its models."""
    if not asked.HasField("model_seq_id"):
        asked.request_id = request.headers.get("x-idempotency-key", "")


def future_response(operation: Operation, *, suffix: str = "") -> Response:
    """The answer of a call that was accepted."""
    told = {"request_id": operation.name + suffix}
    if operation.model_id:
        told["model_id"] = operation.model_id
    return json_response(told)
