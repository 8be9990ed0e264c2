"""Start-up and housekeeping: health, configuration of clients, tokens, capabilities, telemetry
(wire sections 2 and 4)."""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.errors import GatewayError, Kind
from tinkergate.ingress.http.bodies import read_body
from tinkergate.ingress.keys import key_id, refused
from tinkergate.ingress.tinker_rest.auth import HEALTH, MINT_KEY_START, keys_of
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.ingress.tinker_rest.versions import version
from tinkergate.v1 import ErrorReason, SupportedModel

REFRESH_SECONDS = 300
"""How often clients ask for the configuration anew."""

CANCEL_BATCH = 64
"""How many cancellations a client sends at once."""

_FOLLOWS_BELOW = (0, 25)
"""Clients before this version lose the links of archives with their own transport, which follows
redirects out of their sight (wire section 15)."""


def routes(context: Context) -> list[Route]:
    """The routes."""
    service = _Service(context)
    return [
        Route(f"{API}/telemetry", service.telemetry, methods=["POST"]),
        Route(HEALTH, service.healthz, methods=["GET"]),
        Route(f"{API}/client/config", service.client_config, methods=["POST"]),
        Route(f"{API}/client/dynamic_config", service.dynamic_config, methods=["POST"]),
        Route(f"{API}/auth/token", service.auth_token, methods=["POST"]),
        Route(f"{API}/get_server_capabilities", service.capabilities, methods=["GET"]),
    ]


class _Service:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def healthz(self, request: Request) -> Response:  # noqa: ARG002
        """{"status": "ok"}, or 503 while the gateway drains."""
        if not self._context.serving():
            raise GatewayError(
                Kind.UNAVAILABLE,
                ErrorReason.ERROR_REASON_SHUTTING_DOWN,
                "the gateway is shutting down",
            )
        return json_response({"status": "ok"})

    async def client_config(self, request: Request) -> Response:
        """The flags of the SDKs (wire section 2.3). Those that are not here are left to the
        client's defaults."""
        fields = await json_fields(request)
        client = version(fields.optional_text("sdk_version") or "")
        limits = (await self._context.gateway.capabilities()).limits
        mint = self._context.profile == "mint"
        sent = keys_of(request.headers)
        return json_response(
            {
                # MinT's toolkit cannot start without it (wire section 13.1), Tinker's SDK need not
                # ask for a token.
                "pjwt_auth_enabled": any(key.startswith(MINT_KEY_START) for key in sent),
                "credential_default_source": "api_key",
                "parallel_fwdbwd_chunks": True,
                "proto_write_fwdbwd": not mint,
                "fwdbwd_max_chunk_len": limits.chunk_datums,
                "fwdbwd_max_chunk_bytes_count": limits.chunk_bytes,
                "use_pyqwest_transport": client >= _FOLLOWS_BELOW,
                # One poll for all samples of a client, instead of one for each.
                "sample_use_retrieve_futures": not mint,
                "sample_join_sampling_session": not mint,
                "custom_loss_server_side": False,
            }
        )

    async def dynamic_config(self, request: Request) -> Response:
        """The flags that clients ask for again and again (wire section 2.4)."""
        await json_fields(request)
        return json_response(
            {
                "refresh_interval_sec": REFRESH_SECONDS,
                "sample_cancel_enabled": True,
                "sample_cancel_max_batch_size": CANCEL_BATCH,
            }
        )

    async def auth_token(self, request: Request) -> Response:
        """A token for the key that was sent."""
        sent = keys_of(request.headers)
        if not sent:
            raise refused("no API key was sent: send it as 'X-API-Key: <key>'")
        return json_response({"jwt": self._context.tokens.issue(key_id(sent[0]))})

    async def capabilities(self, request: Request) -> Response:  # noqa: ARG002
        """The base models, under each name that they go by."""
        capabilities = await self._context.gateway.capabilities()
        supported = [
            _model(model, name)
            for model in capabilities.models
            for name in (model.name, *model.aliases)
        ]
        return json_response({"supported_models": supported})

    async def telemetry(self, request: Request) -> Response:
        """Accepted, and dropped: events hold what programs did and where they failed, which is
        nobody's business here. A client that is refused would send the same for ever."""
        with suppress(GatewayError):  # Too large, or garbled: all the same.
            await read_body(request)
        return json_response({"status": "accepted"})


def _model(model: SupportedModel, name: str) -> dict[str, object]:
    return {
        "model_name": name,
        "max_context_length": model.max_context_length or None,
        "trainable": model.trainable,
        "sampleable": model.sampleable,
    }
