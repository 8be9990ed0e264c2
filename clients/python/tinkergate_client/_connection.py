"""The channel to one gateway, and how calls go over it."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from tinkergate.v1 import (
    CapabilitiesServiceStub,
    CheckpointServiceStub,
    GetCapabilitiesRequest,
    GetCapabilitiesResponse,
    MintServiceStub,
    ModelServiceStub,
    OperationServiceStub,
    RenderServiceStub,
    SamplingServiceStub,
    ScoringServiceStub,
    SessionServiceStub,
    TrainingServiceStub,
)
from tinkergate_client._calls import Call, Patience
from tinkergate_client._errors import GatewayUnreachable, NotFound, error_from_call

Request = TypeVar("Request")
Response = TypeVar("Response")

DEFAULT_ADDRESS = "127.0.0.1:7700"
MESSAGE_BYTES = 64 * 1024 * 1024
ATTEMPT_SECONDS = 120.0
"""The deadline of one attempt of a call that does no long work: time to send 64 MiB."""
WORK_SECONDS = 86_400.0
"""That of a call that does: for as long as somebody waits for it. A call without any gets ten
minutes of a gateway, and on a small machine long texts take longer."""

_RETRY_UNAVAILABLE = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


@dataclass(frozen=True)
class Tls:
    """How to speak TLS. Paths of PEM files; without `ca` the system's authorities are trusted.
    `certificate` and `key` go together and are shown to gateways that ask for one (mTLS)."""

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """The files, read. Raises OSError, and ValueError for a certificate without its key."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: certificate and key must be given together")

        def read(path: str | os.PathLike[str] | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(
            root_certificates=read(self.ca),
            private_key=read(self.key),
            certificate_chain=read(self.certificate),
        )


class Connection:
    """A channel, its stubs, and what the gateway said about itself.

    Args:
        target: A gRPC target, such as "127.0.0.1:7700" or "dns:///gateway.example:7700".
        api_key: Sent with every call, unless None.
        tls: How to speak TLS; None speaks plain text.
        timeout: Seconds to wait for the first answer.
        patience: Seconds for which calls are tried again while no gateway answers.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None,
        tls: Tls | None,
        timeout: float,
        patience: float,
    ) -> None:
        self.target = target
        self.patience = patience
        self.is_closed = False
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        options = _channel_options(target)
        if tls is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, tls.credentials(), options)
        self.sessions = SessionServiceStub(self._channel)
        self.models = ModelServiceStub(self._channel)
        self.training = TrainingServiceStub(self._channel)
        self.operations = OperationServiceStub(self._channel)
        self.sampling = SamplingServiceStub(self._channel)
        self.scoring = ScoringServiceStub(self._channel)
        self.rendering = RenderServiceStub(self._channel)
        self.mint = MintServiceStub(self._channel)
        self.checkpoints = CheckpointServiceStub(self._channel)
        self._capabilities = CapabilitiesServiceStub(self._channel)
        try:
            first = self._first_answer(timeout)
        except BaseException:
            self.close()
            raise
        self.limits = first.limits
        """The gateway's bounds."""
        self.paired_losses = frozenset(
            loss.name for backend in first.backends for loss in backend.losses if loss.paired
        )
        """The losses whose datums come in pairs."""
        self._default_model = first.default_model

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return self._metadata

    def default_model(self) -> str:
        """The gateway's default base model. Raises NotFound if it has none."""
        if not self._default_model:
            raise NotFound(f"the gateway at {self.target} has no default model; name one")
        return self._default_model

    def close(self) -> None:
        """Give up all calls and the connection."""
        self.is_closed = True
        self._channel.close()

    def start(
        self,
        rpc: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float | None = ATTEMPT_SECONDS,
        wait_for_room: bool = True,
        patience: float | None = None,
    ) -> Future[Response]:
        """Begin a call. It is tried again while no gateway answers, for `patience` seconds (the
        connection's own if None), and while the gateway's queue is full, unless `wait_for_room` is
        false. `timeout` is of one attempt. Cancelling the future cancels the call."""
        seconds = self.patience if patience is None else patience
        waiting = Patience(seconds, wait_for_room=wait_for_room)
        return Call(rpc, request, timeout, self._metadata, waiting).begin()

    def call(
        self,
        rpc: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float | None = ATTEMPT_SECONDS,
        wait_for_room: bool = True,
        patience: float | None = None,
    ) -> Response:
        """Make a call, trying again as `start` does. Raises TinkergateError."""
        future = self.start(
            rpc, request, timeout=timeout, wait_for_room=wait_for_room, patience=patience
        )
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def capabilities(self) -> GetCapabilitiesResponse:
        """What the gateway can do now."""
        return self.call(self._capabilities.GetCapabilities, GetCapabilitiesRequest())

    def _first_answer(self, timeout: float) -> GetCapabilitiesResponse:
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._capabilities.GetCapabilities(
                    GetCapabilitiesRequest(),
                    timeout=max(deadline - time.monotonic(), 0.001),
                    metadata=self._metadata,
                )
            except grpc.RpcError as failure:
                error = error_from_call(failure)
                if not isinstance(error, GatewayUnreachable):
                    raise error from None
                if time.monotonic() >= deadline:
                    raise GatewayUnreachable(
                        f"no gateway answered at {self.target} within {timeout:g} s "
                        f"({error.message}); `tinkergate serve` starts one",
                        code=error.code,
                    ) from None
            time.sleep(min(0.1, max(deadline - time.monotonic(), 0)))


def _channel_options(target: str) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        # Gateways refuse clients that ping more often than twice a minute.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # A new client starts without the waiting times that an older one's failures left.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _RETRY_UNAVAILABLE),
    ]
    if _is_local(target):
        # A proxy for the way out is no way to this machine.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _is_local(target: str) -> bool:
    address = target.rsplit("/", 1)[-1]
    return target.startswith("unix:") or address.startswith(
        ("127.", "localhost:", "[::1]:", "ipv4:127.", "ipv6:[::1]")
    )
