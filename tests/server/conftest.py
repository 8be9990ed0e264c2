"""Talking to a gateway process over connections that a test can cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace

import grpc
import pytest

from tinkergate import v1
from tinkergate_client import supervised_datum


class CuttableWire:
    """A TCP relay between a client and a gateway. Cutting it resets every connection, as a
    network that fails does: neither side learns of it from gRPC."""

    def __init__(self, gateway: str) -> None:
        self._host, _, port = gateway.rpartition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._sent = asyncio.Condition()
        self.bytes_sent = 0
        """Bytes from clients to the gateway so far."""
        self.address = ""

    async def __aenter__(self) -> CuttableWire:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Reset all connections. New ones can be made."""
        for writer in self._writers:
            writer.transport.abort()
        if self._relays:
            await asyncio.wait(self._relays)

    async def until_sent(self, total: int) -> None:
        """Return once clients have sent so many bytes in all."""
        async with self._sent:
            await self._sent.wait_for(lambda: self.bytes_sent >= total)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._writers |= {writer, far_writer}
            await asyncio.gather(
                self._copy(reader, far_writer, count=True),
                self._copy(far_reader, writer, count=False),
            )
        finally:
            self._relays.discard(task)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
                if count:
                    async with self._sent:
                        self.bytes_sent += len(data)
                        self._sent.notify_all()
        writer.transport.abort()


@pytest.fixture
def cuttable_wire():
    """`async with cuttable_wire(address) as wire`: see CuttableWire."""
    return CuttableWire


def _stubs(channel: grpc.aio.Channel) -> SimpleNamespace:
    return SimpleNamespace(
        sessions=v1.SessionServiceStub(channel),
        models=v1.ModelServiceStub(channel),
        training=v1.TrainingServiceStub(channel),
        operations=v1.OperationServiceStub(channel),
        sampling=v1.SamplingServiceStub(channel),
        scoring=v1.ScoringServiceStub(channel),
        capabilities=v1.CapabilitiesServiceStub(channel),
    )


@pytest.fixture
def connected():
    """`async with connected(address) as call`: stubs on a connection of their own."""

    @contextlib.asynccontextmanager
    async def connect(address: str) -> AsyncIterator[SimpleNamespace]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            yield _stubs(channel)

    return connect


@pytest.fixture
def create_model():
    """`await create_model(call)` makes a session and a small model; answers the model's id."""

    async def create(call: SimpleNamespace) -> str:
        session = (await call.sessions.CreateSession(v1.CreateSessionRequest())).session
        capabilities = await call.capabilities.GetCapabilities(v1.GetCapabilitiesRequest())
        operation = await call.models.CreateModel(
            v1.CreateModelRequest(
                session_id=session.session_id,
                base_model=capabilities.default_model,
                lora_config=v1.LoraConfig(rank=4, seed=1),
            )
        )
        done = await wait_until_done(call, operation.name)
        assert done.WhichOneof("result") == "create_model", done
        return done.create_model.model_id

    return create


async def wait_until_done(call: SimpleNamespace, name: str) -> v1.Operation:
    """The operation once it is done."""
    unfinished = (
        v1.OperationState.OPERATION_STATE_PARKED,
        v1.OperationState.OPERATION_STATE_QUEUED,
        v1.OperationState.OPERATION_STATE_RUNNING,
    )
    while True:
        answer = await call.operations.WaitOperation(v1.WaitOperationRequest(name=name))
        if answer.operation.state not in unfinished:
            return answer.operation


@pytest.fixture
def until_done():
    """`await until_done(call, name)` waits for an operation's end; answers the operation."""
    return wait_until_done


@pytest.fixture
def training_step():
    """A forward_backward request of one short text."""

    def build(model_id: str, seq_id: int | None, **changes: object) -> v1.ForwardBackwardRequest:
        datum = supervised_datum([5, 6, 7, 8, 9], [0, 1, 1, 1, 1])
        request = v1.ForwardBackwardRequest(
            model_id=model_id, seq_id=seq_id, data=[datum], loss_fn="cross_entropy"
        )
        for name, value in changes.items():
            setattr(request, name, value)
        return request

    return build
