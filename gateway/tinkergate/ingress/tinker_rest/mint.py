"""MinT's own routes (wire sections 13.2, 13.3 and 13.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.mint_json import (
    act_batch_request,
    act_request,
    act_to_json,
    create_action_session_request,
    interpolate_request,
    reverse_kl_request,
    vla_train_step_request,
)
from tinkergate.ingress.http.bodies import THREAD_BYTES, read_body
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.ingress.tinker_rest.models import future_response
from tinkergate.v1 import CloseActionSessionRequest

Asked = TypeVar("Asked")

_MINT = f"{API}/mint"
_SESSION = f"{_MINT}/action_sessions/{{action_session_id}}"


def routes(context: Context) -> list[Route]:
    """The routes."""
    mint = _Mint(context)
    return [
        Route(f"{_MINT}/forward_backward_reverse_kl", mint.reverse_kl, methods=["POST"]),
        Route(f"{_MINT}/checkpoints/interpolate", mint.interpolate, methods=["POST"]),
        Route(f"{_MINT}/vla/train_step", mint.vla_train_step, methods=["POST"]),
        Route(f"{_MINT}/action_sessions", mint.create_action_session, methods=["POST"]),
        Route(f"{_SESSION}/act", mint.act, methods=["POST"]),
        Route(f"{_SESSION}/act_batch", mint.act_batch, methods=["POST"]),
        Route(_SESSION, mint.close_action_session, methods=["DELETE"]),
    ]


class _Mint:
    """MinT's client numbers none of these calls, so one that is refused leaves no hole behind."""

    def __init__(self, context: Context) -> None:
        self._mint = context.gateway.mint

    async def reverse_kl(self, request: Request) -> Response:
        """Gradients of the reverse KL divergence to a reference."""
        asked = await _read(request, reverse_kl_request)
        if not asked.HasField("seq_id"):
            asked.request_id = _retry_key(request)
        return future_response(await self._mint.forward_backward_reverse_kl(asked))

    async def interpolate(self, request: Request) -> Response:
        """The weighted sum of checkpoints."""
        asked = await _read(request, interpolate_request)
        asked.request_id = _retry_key(request)
        return future_response(await self._mint.interpolate_checkpoints(asked))

    async def vla_train_step(self, request: Request) -> Response:
        """One training step of a vision-language-action model."""
        asked = await _read(request, vla_train_step_request)
        if not asked.HasField("seq_id"):
            asked.request_id = _retry_key(request)
        return future_response(await self._mint.vla_train_step(asked))

    async def create_action_session(self, request: Request) -> Response:
        """A session in which such a model acts."""
        asked = await _read(request, create_action_session_request)
        made = await self._mint.create_action_session(asked)
        return json_response({"action_session_id": made.action_session_id})

    async def act(self, request: Request) -> Response:
        """What to do for one observation."""
        asked = await _read(request, partial(act_request, _action_session_id(request)))
        return json_response(act_to_json((await self._mint.act(asked)).result))

    async def act_batch(self, request: Request) -> Response:
        """What to do for each of several observations."""
        asked = await _read(request, partial(act_batch_request, _action_session_id(request)))
        return json_response(act_to_json((await self._mint.act_batch(asked)).result))

    async def close_action_session(self, request: Request) -> Response:
        """Ends an action session."""
        asked = CloseActionSessionRequest(action_session_id=_action_session_id(request))
        await self._mint.close_action_session(asked)
        return json_response({"action_session_id": asked.action_session_id})


async def _read(request: Request, make: Callable[[Fields], Asked]) -> Asked:
    """The message of a body in JSON. Numbers become arrays here, which for large bodies takes as
    long as reading them."""
    body = await read_body(request)

    def read() -> Asked:
        return make(Fields(read_json(body) if body else {}))

    return read() if len(body) < THREAD_BYTES else await asyncio.to_thread(read)


def _retry_key(request: Request) -> str:
    """What makes a retry the same call."""
    return request.headers.get("x-idempotency-key", "")


def _action_session_id(request: Request) -> str:
    given: str = request.path_params["action_session_id"]
    return given
