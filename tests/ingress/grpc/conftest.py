"""A small server behind the interceptor, whose handlers do what the test says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from tinkergate.ingress.grpc.interceptor import CallInterceptor
from tinkergate.ingress.keys import ApiKeys
from tinkergate.v1 import (
    CheckpointServiceServicer,
    GetSessionResponse,
    ImportCheckpointResponse,
    SamplingServiceServicer,
    SessionServiceServicer,
    add_CheckpointServiceServicer_to_server,
    add_SamplingServiceServicer_to_server,
    add_SessionServiceServicer_to_server,
)


async def _answer_nothing(request: Any) -> GetSessionResponse:
    return GetSessionResponse()


@dataclass
class Behaviour:
    """What the handlers do. `unary` answers GetSession, `stream` StreamSample; ImportCheckpoint
    keeps what it got."""

    unary: Callable[[Any], Awaitable[GetSessionResponse]] = _answer_nothing
    stream: Callable[[Any], AsyncIterator[Any]] | None = None
    imported: list[Any] = field(default_factory=list)
    calls: int = 0


class _Sessions(SessionServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def GetSession(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        self._behaviour.calls += 1
        return await self._behaviour.unary(request)


class _Sampling(SamplingServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def StreamSample(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        self._behaviour.calls += 1
        assert self._behaviour.stream is not None
        async for event in self._behaviour.stream(request):
            yield event


class _Checkpoints(CheckpointServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def ImportCheckpoint(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        self._behaviour.calls += 1
        async for message in request:
            self._behaviour.imported.append(message)
        return ImportCheckpointResponse()


@dataclass
class Probe:
    """The server's behaviour and a channel to it."""

    behaviour: Behaviour
    channel: grpc.aio.Channel
    address: str


ProbeMaker = Callable[..., contextlib.AbstractAsyncContextManager[Probe]]


@pytest.fixture
def probe() -> ProbeMaker:
    """Starts the server: `async with probe(keys=["k"], default_deadline=1.0) as p`."""

    @contextlib.asynccontextmanager
    async def start(
        keys: list[str] | None = None,
        default_deadline: float | None = None,
        max_message_bytes: int = 64 << 20,
    ) -> AsyncIterator[Probe]:
        behaviour = Behaviour()
        interceptor = CallInterceptor(
            ApiKeys(keys or []),
            max_message_bytes=max_message_bytes,
            default_deadline=default_deadline,
        )
        server = grpc.aio.server(interceptors=[interceptor])
        add_SessionServiceServicer_to_server(_Sessions(behaviour), server)
        add_SamplingServiceServicer_to_server(_Sampling(behaviour), server)
        add_CheckpointServiceServicer_to_server(_Checkpoints(behaviour), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield Probe(behaviour, channel, address)
        finally:
            await server.stop(0)

    return start


@dataclass(frozen=True)
class Details:
    """The google.rpc details of a failed call."""

    info: error_details_pb2.ErrorInfo
    bad_request: error_details_pb2.BadRequest | None
    retry: error_details_pb2.RetryInfo | None


@pytest.fixture
def details_of() -> Callable[[grpc.aio.AioRpcError], Details]:
    """Reads the details out of a failed call's trailers, as a client in any language would."""

    def read(error: grpc.aio.AioRpcError) -> Details:
        trailers = dict(error.trailing_metadata())
        status = Status.FromString(trailers["grpc-status-details-bin"])
        assert status.code == error.code().value[0]
        assert status.message == error.details()
        found: dict[str, Any] = {}
        for packed in status.details:
            kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
            message = kind()
            packed.Unpack(message)
            found[kind.__name__] = message
        return Details(found["ErrorInfo"], found.get("BadRequest"), found.get("RetryInfo"))

    return read
