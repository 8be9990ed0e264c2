"""The gRPC door: a grpc.aio server with the services of the contract, health and reflection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.address import (
    Address,
    ListenError,
    check_exposure,
    check_free,
    parse_address,
)
from tinkergate.ingress.grpc.capabilities import CapabilitiesServicer
from tinkergate.ingress.grpc.checkpoints import CheckpointServicer
from tinkergate.ingress.grpc.interceptor import CallInterceptor
from tinkergate.ingress.grpc.mint import MintServicer
from tinkergate.ingress.grpc.models import ModelServicer
from tinkergate.ingress.grpc.operations import OperationServicer
from tinkergate.ingress.grpc.rendering import RenderServicer
from tinkergate.ingress.grpc.sampling import SamplingServicer
from tinkergate.ingress.grpc.scoring import ScoringServicer
from tinkergate.ingress.grpc.sessions import SessionServicer
from tinkergate.ingress.grpc.settings import GrpcSettings
from tinkergate.ingress.grpc.tls import server_credentials
from tinkergate.ingress.grpc.training import TrainingServicer
from tinkergate.ingress.keys import ApiKeys
from tinkergate.ingress.tls import TlsFiles
from tinkergate.v1 import (
    CreateModelRequest,
    CreateSamplerRequest,
    CreateSessionRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    GetCapabilitiesRequest,
    GetCheckpointRequest,
    GetOperationRequest,
    RenderPromptRequest,
    ScoreRequest,
    add_CapabilitiesServiceServicer_to_server,
    add_CheckpointServiceServicer_to_server,
    add_MintServiceServicer_to_server,
    add_ModelServiceServicer_to_server,
    add_OperationServiceServicer_to_server,
    add_RenderServiceServicer_to_server,
    add_SamplingServiceServicer_to_server,
    add_ScoringServiceServicer_to_server,
    add_SessionServiceServicer_to_server,
    add_TrainingServiceServicer_to_server,
)

_FLAG = "--grpc"

# The message stands for its file, which knows the service's name.
_SERVICES: tuple[tuple[Any, Any, type[Message]], ...] = (
    (SessionServicer, add_SessionServiceServicer_to_server, CreateSessionRequest),
    (ModelServicer, add_ModelServiceServicer_to_server, CreateModelRequest),
    (TrainingServicer, add_TrainingServiceServicer_to_server, ForwardRequest),
    (OperationServicer, add_OperationServiceServicer_to_server, GetOperationRequest),
    (SamplingServicer, add_SamplingServiceServicer_to_server, CreateSamplerRequest),
    (ScoringServicer, add_ScoringServiceServicer_to_server, ScoreRequest),
    (MintServicer, add_MintServiceServicer_to_server, ForwardBackwardReverseKlRequest),
    (RenderServicer, add_RenderServiceServicer_to_server, RenderPromptRequest),
    (CheckpointServicer, add_CheckpointServiceServicer_to_server, GetCheckpointRequest),
    (CapabilitiesServicer, add_CapabilitiesServiceServicer_to_server, GetCapabilitiesRequest),
)


class GrpcDoor:
    """One listening gRPC server in front of a gateway.

    Everything that can be wrong with its settings is found out before `start`: the constructor
    raises ListenError for an address that cannot be used, TLS files that do not work, and an
    address beyond loopback that is open to everybody.
    """

    def __init__(
        self,
        settings: GrpcSettings,
        *,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
        api_keys: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._max_message_bytes = max_message_bytes
        self._keys = ApiKeys(api_keys)
        tls = tls or TlsFiles()
        self._address = parse_address(settings.listen)
        self._credentials = server_credentials(tls)
        guarded = self._credentials is not None and (bool(api_keys) or tls.client_ca is not None)
        check_exposure(
            self._address, guarded=guarded, insecure_allowed=settings.allow_insecure_bind
        )
        check_free(self._address, _FLAG)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # stubs lack it
        self._server: grpc.aio.Server | None = None

    async def start(self, gateway: Gateway) -> Address:
        """Listen. Answers the address, with the port that was chosen where 0 was asked for. Raises
        ListenError."""
        server = grpc.aio.server(
            interceptors=[
                CallInterceptor(
                    self._keys,
                    max_message_bytes=self._max_message_bytes,
                    default_deadline=self._settings.default_deadline,
                )
            ],
            options=_options(self._settings, self._max_message_bytes),
            maximum_concurrent_rpcs=self._settings.max_concurrent_calls,
        )
        names = []
        for servicer, add_to_server, message in _SERVICES:
            add_to_server(servicer(gateway), server)
            names += [service.full_name for service in _services_beside(message)]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            reflection.enable_server_reflection(
                [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
            )
        try:
            port = self._bind(server)
        except RuntimeError:
            check_free(self._address, _FLAG)  # Somebody may have come first since the constructor.
            raise ListenError(f"cannot listen on {self._address}") from None
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        self._server = server
        return self._address._replace(port=port)

    async def drain(self) -> None:
        """Tell health checks that no new work is welcome. Calls are answered as before."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Stop listening; calls that are running get `grace` seconds to end."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None

    def _bind(self, server: grpc.aio.Server) -> int:
        if self._credentials is None:
            return server.add_insecure_port(str(self._address))
        return server.add_secure_port(str(self._address), self._credentials)


def _services_beside(message: type[Message]) -> Sequence[Any]:
    return list(message.DESCRIPTOR.file.services_by_name.values())


def _options(settings: GrpcSettings, max_message_bytes: int) -> list[tuple[str, int]]:
    def milliseconds(seconds: float) -> int:
        return round(seconds * 1000)

    options = [
        # Else a second gateway would get the port too, and half of the callers.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", milliseconds(settings.keepalive_time)),
        ("grpc.keepalive_timeout_ms", milliseconds(settings.keepalive_timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        (
            "grpc.http2.min_recv_ping_interval_without_data_ms",
            milliseconds(settings.min_ping_interval),
        ),
    ]
    if settings.max_connection_age is not None:
        options += [
            ("grpc.max_connection_age_ms", milliseconds(settings.max_connection_age)),
            ("grpc.max_connection_age_grace_ms", milliseconds(settings.max_connection_age_grace)),
        ]
    return options
