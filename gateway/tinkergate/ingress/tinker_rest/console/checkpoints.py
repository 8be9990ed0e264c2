"""What is done to one checkpoint: deleted, published, given an end."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.core.ids import PATH_RULE
from tinkergate.errors import GatewayError, Kind, invalid_field
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.console.queries import path_of
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import error_response
from tinkergate.v1 import (
    DeleteCheckpointRequest,
    PublishCheckpointRequest,
    SetCheckpointTtlRequest,
    UnpublishCheckpointRequest,
)

CHECKPOINT = f"{API}/training_runs/{{run_id}}/checkpoints/{{kind}}/{{name}}"
_NO_CONTENT = 204


def routes(context: Context) -> list[Route]:
    """DELETE, publish and ttl of a checkpoint."""
    checkpoints = context.gateway.checkpoints

    async def delete(request: Request) -> Response:
        await checkpoints.delete(DeleteCheckpointRequest(path=path_of(request)))
        return Response(status_code=_NO_CONTENT)

    async def publish(request: Request) -> Response:
        try:
            await checkpoints.publish(PublishCheckpointRequest(path=path_of(request)))
        except GatewayError as error:
            return _unchanged(request, error)
        return Response(status_code=_NO_CONTENT)

    async def unpublish(request: Request) -> Response:
        try:
            await checkpoints.unpublish(UnpublishCheckpointRequest(path=path_of(request)))
        except GatewayError as error:
            return _unchanged(request, error)
        return Response(status_code=_NO_CONTENT)

    async def set_ttl(request: Request) -> Response:
        fields = await json_fields(request)
        if "ttl_seconds" not in fields.value:
            raise invalid_field("ttl_seconds", "is not given; must be an integer or null")
        seconds = fields.optional_integer("ttl_seconds", bits=64)
        ttl = None if seconds is None else _duration(seconds)
        await checkpoints.set_ttl(SetCheckpointTtlRequest(path=path_of(request), ttl=ttl))
        return Response(status_code=_NO_CONTENT)

    async def bad_id(request: Request) -> Response:
        given = str(request.path_params["rest"])[:200]
        raise invalid_field("path", f"names the checkpoint {given!r}; must be as in {PATH_RULE}")

    return [
        Route(CHECKPOINT, delete, methods=["DELETE"]),
        Route(f"{CHECKPOINT}/publish", publish, methods=["POST"]),
        Route(f"{CHECKPOINT}/publish", unpublish, methods=["DELETE"]),
        Route(f"{CHECKPOINT}/ttl", set_ttl, methods=["PUT"]),
        Route(
            f"{API}/training_runs/{{run_id}}/checkpoints/{{rest:path}}",
            bad_id,
            methods=["GET", "POST", "PUT", "DELETE"],
        ),
    ]


def _duration(seconds: int) -> Duration:
    """Anything that fits a duration; the core says which it takes."""
    return Duration(seconds=max(-(10**11), min(seconds, 10**11)))


def _unchanged(request: Request, error: GatewayError) -> Response:
    """A checkpoint that is public, or not, already: 409 by the reference, which clients repeat
    unless they are told not to."""
    response = error_response(error, request.scope["state"]["request_id"])
    if error.kind is Kind.CONFLICT:
        response.headers["x-should-retry"] = "false"
    return response
