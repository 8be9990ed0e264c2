"""Work on a model, in its order (wire sections 5.3 to 5.8 and 7).

A request that names its model and its place, but is wrong otherwise, is accepted all the same, and
fails when its turn comes: the SDKs number their requests before they send them, and what comes
after one that was refused would wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.read_requests import (
    Ordered,
    load_state_request,
    optim_step_request,
    save_state_request,
    save_weights_external_request,
    save_weights_for_sampler_request,
)
from tinkergate.dialects.tinker.read_training import (
    PassRequest,
    pass_from_json,
    pass_from_protobuf,
)
from tinkergate.errors import GatewayError
from tinkergate.ingress.http.bodies import THREAD_BYTES, read_body
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.futures import PROTOBUF
from tinkergate.ingress.tinker_rest.models import create_from_checkpoint, future_response
from tinkergate.ingress.turns import takes_turn
from tinkergate.v1 import (
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    Operation,
    OptimStepRequest,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
)

_Request: TypeAlias = PassRequest | Ordered
Read = TypeVar("Read")
_Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

_ORDERED: dict[str, tuple[Callable[[Fields], Ordered], type[Ordered]]] = {
    "optim_step": (optim_step_request, OptimStepRequest),
    "save_weights": (save_state_request, SaveStateRequest),
    "save_weights_for_sampler": (save_weights_for_sampler_request, SaveWeightsForSamplerRequest),
    "save_weights_external": (save_weights_external_request, SaveWeightsExternalRequest),
}


def routes(context: Context) -> list[Route]:
    """The routes."""
    training = _Training(context)
    handlers: dict[str, _Handler] = {
        "forward_backward": training.forward_backward,
        "forward": training.forward,
        "load_weights": training.load_weights,
    }
    handlers.update({name: training.ordered(*form) for name, form in _ORDERED.items()})
    return [Route(f"{API}/{name}", handler, methods=["POST"]) for name, handler in handlers.items()]


class _Training:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._training = context.gateway.training

    async def forward_backward(self, request: Request) -> Response:
        """Gradients of a loss, or with `forward_only` its value. JSON or protobuf."""
        if PROTOBUF in request.headers.get("content-type", ""):
            asked = await _off_loop(pass_from_protobuf, await read_body(request))
            return future_response(await self._submit(asked))
        return await self._pass(request, forward_only=False)

    async def forward(self, request: Request) -> Response:
        """The value of a loss. JSON."""
        return await self._pass(request, forward_only=True)

    async def _pass(self, request: Request, *, forward_only: bool) -> Response:
        body = await read_body(request)
        fields = Fields(await _off_loop(read_json, body))
        try:
            # Numbers become arrays here, which takes as long as reading them.
            if len(body) < THREAD_BYTES:
                asked = pass_from_json(fields, forward_only=forward_only)
            else:
                asked = await asyncio.to_thread(pass_from_json, fields, forward_only=forward_only)
        except GatewayError as error:
            empty = ForwardRequest if forward_only else ForwardBackwardRequest
            return future_response(await self._refuse_unread(empty(), fields, error))
        return future_response(await self._submit(asked))

    def ordered(self, read: Callable[[Fields], Ordered], empty: type[Ordered]) -> _Handler:
        """The handler of a route whose body is JSON that `read` reads."""

        async def handle(request: Request) -> Response:
            fields = await json_fields(request)
            return future_response(await self._ordered(fields, read, empty))

        return handle

    async def load_weights(self, request: Request) -> Response:
        """A checkpoint's weights, into a model; without one, into a new model."""
        fields = await json_fields(request)
        if "model_id" not in fields:
            return await create_from_checkpoint(self._context, fields, request)
        operation = await self._ordered(fields, load_state_request, LoadStateRequest)
        return future_response(operation)

    async def _ordered(
        self, fields: Fields, read: Callable[[Fields], Ordered], empty: type[Ordered]
    ) -> Operation:
        try:
            asked = read(fields)
        except GatewayError as error:
            return await self._refuse_unread(empty(), fields, error)
        return await self._submit(asked)

    async def _submit(self, asked: _Request) -> Operation:
        try:
            return await self._training.submit(asked)
        except GatewayError as error:
            if not (_has_place(asked) and takes_turn(error)):
                raise
            return await self._training.refuse(asked, error)

    async def _refuse_unread(
        self, asked: _Request, fields: Fields, error: GatewayError
    ) -> Operation:
        """Have a request fail in its turn that could not be read, if it says which turn that is."""
        try:
            asked.model_id = fields.text("model_id")
            asked.seq_id = fields.integer("seq_id")
        except GatewayError:
            raise error from None
        if not _has_place(asked):
            raise error
        return await self._training.refuse(asked, error)


def _has_place(asked: _Request) -> bool:
    return asked.HasField("seq_id") and asked.seq_id >= 1


async def _off_loop(read: Callable[[bytes], Read], body: bytes) -> Read:
    """What `read` makes of `body`, in a thread where that takes long."""
    if len(body) < THREAD_BYTES:
        return read(body)
    return await asyncio.to_thread(read, body)
