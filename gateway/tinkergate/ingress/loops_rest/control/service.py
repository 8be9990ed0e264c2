"""Sessions, teams and capabilities (wire sections 4.1 and 4.5)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.errors import invalid_field
from tinkergate.ingress.http.bodies import read_body
from tinkergate.ingress.loops_rest.context import CONTROL, Context
from tinkergate.ingress.loops_rest.control.forms import TEAM, both
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import (
    CreateSessionRequest,
    GetCapabilitiesResponse,
    GetSessionRequest,
    SupportedModel,
)

_USES = ("rl", "sft")


def routes(context: Context) -> list[Route]:
    """The routes."""
    service = _Service(context)
    return [
        *both("sessions", service.create_session, "POST"),
        Route(f"{CONTROL}loops/sessions/{{session_id}}", service.get_session, methods=["GET"]),
        Route(f"{CONTROL}teams", service.teams, methods=["GET"]),
        Route(f"{CONTROL}loops/capabilities", service.capabilities, methods=["GET"]),
    ]


class _Service:
    def __init__(self, context: Context) -> None:
        self._gateway = context.gateway

    async def create_session(self, request: Request) -> Response:
        """A new session. There is nothing to say about it."""
        await read_body(request)
        client = request.headers.get("user-agent", "")[:256]
        asked = CreateSessionRequest(client_version=client)
        created = await self._gateway.sessions.create(asked)
        return json_response({"session": {"id": created.session.session_id}})

    async def get_session(self, request: Request) -> Response:
        """Whether there is such a session."""
        asked = GetSessionRequest(session_id=request.path_params["session_id"])
        found = await self._gateway.sessions.get(asked)
        return json_response({"session": {"id": found.session.session_id}})

    async def teams(self, request: Request) -> Response:  # noqa: ARG002
        """The one team."""
        return json_response({"teams": [{"id": TEAM, "name": TEAM, "default": True}]})

    async def capabilities(self, request: Request) -> Response:
        """The base models, under each name that they go by: those that can be trained, and for
        reinforcement learning sampled too."""
        query = request.query_params
        use = query.get("use_case", "rl")
        if use not in _USES:
            raise invalid_field("use_case", f"is {use[:80]!r}; must be 'rl' or 'sft'")
        least = query.get("max_seq_len", "0")
        if not (least.isascii() and least.isdigit() and len(least) < 10):
            raise invalid_field("max_seq_len", f"is {least[:80]!r}; must be a number from 0")
        capabilities = await self._gateway.capabilities()
        images = {each.name: each.image_input for each in capabilities.backends}
        told = [
            _model(model, name, int(least), images.get(model.backend, False))
            for model in _offered(capabilities, use)
            for name in (model.name, *model.aliases)
            if query.get("model") in (None, name)
        ]
        return json_response({"supported_models": told})


def _offered(capabilities: GetCapabilitiesResponse, use: str) -> list[SupportedModel]:
    return [
        model
        for model in capabilities.models
        if model.trainable and (use == "sft" or model.sampleable)
    ]


def _model(model: SupportedModel, name: str, least: int, images: bool) -> dict[str, object]:
    longest = model.max_context_length or None
    enabled = longest is None or longest >= least
    details = {
        "reason": "sequence_length_unsupported",
        "reason_detail": f"the longest sequence has {longest} tokens",
        "remediation": None,
    }
    return {
        "model_name": name,
        "max_seq_len": longest,
        "max_enabled_seq_len": longest,
        # What the SDK reads.
        "max_context_length": longest,
        "supports_vision_language": images,
        "enabled": enabled,
        "enablement_details": None if enabled else details,
    }
