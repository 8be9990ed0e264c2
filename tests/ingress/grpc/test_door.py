"""The door as a server: addresses, TLS, keys, health, reflection, limits. Behind it is a real
gateway without a backend, which has sessions all the same."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import tinkergate.v1
from tinkergate.core.gateway import Gateway
from tinkergate.core.settings import CoreSettings
from tinkergate.ingress.address import ListenError
from tinkergate.ingress.grpc.door import GrpcDoor
from tinkergate.ingress.grpc.settings import GrpcSettings
from tinkergate.ingress.tls import TlsFiles
from tinkergate.store import Store
from tinkergate.v1 import (
    CapabilitiesServiceStub,
    CheckpointServiceStub,
    CreateSessionRequest,
    GetCapabilitiesRequest,
    ImportCheckpointRequest,
    SessionServiceStub,
)

LOOPBACK = "127.0.0.1:0"
MESSAGE_BYTES = 64 << 20
Serving = health_pb2.HealthCheckResponse


@pytest.fixture
def open_door(tmp_path: Path):
    """Opens a door: `async with open_door(api_keys=["k"]) as (door, address)`."""

    @contextlib.asynccontextmanager
    async def start(max_message_bytes: int = MESSAGE_BYTES, tls=None, api_keys=(), **settings):
        door = GrpcDoor(
            GrpcSettings(**{"listen": LOOPBACK, **settings}),
            max_message_bytes=max_message_bytes,
            tls=tls,
            api_keys=api_keys,
        )
        limits = CoreSettings(max_message_bytes=max_message_bytes)
        gateway = Gateway([], Store(f"sqlite:///{tmp_path / 'gateway.db'}"), limits, "")
        await gateway.start()
        try:
            address = await door.start(gateway)
            yield door, str(address)
        finally:
            await door.stop(0)
            await gateway.close(0)

    return start


async def create_session(channel: grpc.aio.Channel, **call) -> str:
    stub = SessionServiceStub(channel)
    return (await stub.CreateSession(CreateSessionRequest(), **call)).session.session_id


async def sessions_without_end(channel: grpc.aio.Channel) -> None:
    while True:
        await create_session(channel)


async def refused(awaitable, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is code, caught.value
    return caught.value.details()


async def test_every_service_of_the_contract_is_served_healthy_and_reflected(open_door):
    contract = {
        service.full_name
        for name in vars(tinkergate.v1)
        if (message := getattr(tinkergate.v1, name)) and hasattr(message, "DESCRIPTOR")
        for service in getattr(
            message.DESCRIPTOR, "file", message.DESCRIPTOR
        ).services_by_name.values()
    }
    assert len(contract) == 10
    async with open_door() as (_, address), grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *contract):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == Serving.SERVING
        for service in contract:
            descriptor = descriptor_pool.Default().FindServiceByName(service)
            for method in descriptor.methods:
                path = f"/{service}/{method.name}"
                call = channel.stream_stream(path)(timeout=30)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call.write(b"")
                    await call.done_writing()
                    await call.read()
                assert await call.code() is not grpc.StatusCode.UNIMPLEMENTED, path
        assert await reflected(channel) >= contract


async def reflected(channel, metadata=()) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(metadata=metadata)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    await call.done_writing()
    assert answer is not grpc.aio.EOF, await call.details()
    return {service.name for service in answer.list_services_response.service}


async def reflection_refused(channel, code, metadata=()) -> None:
    """Nothing is written: a write that crosses the refusal would end the call as INTERNAL here."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(metadata=metadata, timeout=30)
    assert await call.code() is code


async def test_reflection_can_be_turned_off(open_door):
    async with (
        open_door(reflection=False) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        await reflection_refused(channel, grpc.StatusCode.UNIMPLEMENTED)


async def test_without_the_key_nothing_but_health_answers(open_door):
    async with (
        open_door(api_keys=["right"]) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        await refused(create_session(channel), unauthenticated)
        wrong = [("authorization", "Bearer wrong")]
        await refused(create_session(channel, metadata=wrong), unauthenticated)
        await reflection_refused(channel, unauthenticated)
        await reflection_refused(channel, unauthenticated, wrong)
        right = [("authorization", "Bearer right")]
        assert await create_session(channel, metadata=right)
        assert await reflected(channel, right)
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == Serving.SERVING


async def test_tls_serves_clients_that_trust_the_authority(open_door, certificates):
    tls = TlsFiles(certificates.cert, certificates.key)
    async with open_door(tls=tls) as (_, address):
        trusting = grpc.ssl_channel_credentials(certificates.ca.read_bytes())
        async with grpc.aio.secure_channel(address, trusting) as channel:
            assert await create_session(channel)
        distrusting = grpc.ssl_channel_credentials(certificates.stranger_ca.read_bytes())
        async with grpc.aio.secure_channel(address, distrusting) as channel:
            await refused(create_session(channel), grpc.StatusCode.UNAVAILABLE)
        async with grpc.aio.insecure_channel(address) as channel:
            await refused(create_session(channel), grpc.StatusCode.UNAVAILABLE)


async def test_mtls_lets_in_only_clients_of_the_authority(open_door, certificates):
    tls = TlsFiles(certificates.cert, certificates.key, certificates.ca)

    def credentials(name: str | None) -> grpc.ChannelCredentials:
        if name is None:
            return grpc.ssl_channel_credentials(certificates.ca.read_bytes())
        return grpc.ssl_channel_credentials(
            certificates.ca.read_bytes(),
            getattr(certificates, f"{name}_key").read_bytes(),
            getattr(certificates, f"{name}_cert").read_bytes(),
        )

    async with open_door(tls=tls) as (_, address):
        async with grpc.aio.secure_channel(address, credentials("client")) as channel:
            assert await create_session(channel)
        for name in (None, "stranger"):
            async with grpc.aio.secure_channel(address, credentials(name)) as channel:
                await refused(create_session(channel), grpc.StatusCode.UNAVAILABLE)


def test_beyond_loopback_it_takes_tls_and_callers_who_can_be_known(certificates):
    def door(*, tls: TlsFiles | None = None, api_keys=(), **settings):
        return GrpcDoor(
            GrpcSettings(listen="0.0.0.0:0", **settings),
            max_message_bytes=MESSAGE_BYTES,
            tls=tls,
            api_keys=api_keys,
        )

    tls = TlsFiles(certificates.cert, certificates.key)
    for half in ({}, {"tls": tls}, {"api_keys": ["key"]}):
        with pytest.raises(ListenError) as caught:
            door(**half)
        assert "0.0.0.0:0 can be reached from other machines" in str(caught.value)
        assert "--allow-insecure-bind" in str(caught.value)
    door(tls=tls, api_keys=["key"])
    door(tls=TlsFiles(certificates.cert, certificates.key, certificates.ca))
    door(allow_insecure_bind=True)


async def test_a_port_is_never_shared(open_door):
    async with open_door() as (_, address):
        with pytest.raises(ListenError, match="is in use; another gateway"):
            GrpcDoor(GrpcSettings(listen=address), max_message_bytes=MESSAGE_BYTES)


async def test_a_port_that_is_taken_at_the_last_moment_is_told_too(open_door, tmp_path):
    """Both doors found the port free, and one opens first."""
    async with open_door() as (first, address):
        late = GrpcDoor(GrpcSettings(listen=LOOPBACK), max_message_bytes=MESSAGE_BYTES)
        late._address = first._address._replace(port=int(address.rpartition(":")[2]))
        gateway = Gateway([], Store(f"sqlite:///{tmp_path / 'late.db'}"), CoreSettings(), "")
        await gateway.start()
        try:
            with pytest.raises(ListenError, match="is in use; another gateway"):
                await late.start(gateway)
        finally:
            await gateway.close(0)


async def test_draining_tells_health_checks_and_still_answers(open_door):
    async with open_door() as (door, address), grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == Serving.SERVING
        await door.drain()
        assert (await watch.read()).status == Serving.NOT_SERVING
        watch.cancel()
        for service in ("", "tinkergate.v1.TrainingService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == Serving.NOT_SERVING
        assert await create_session(channel)


async def test_messages_up_to_the_limit_pass_and_larger_ones_are_refused(open_door):
    limit = 100_000
    async with (
        open_door(max_message_bytes=limit) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        published = (
            await CapabilitiesServiceStub(channel).GetCapabilities(GetCapabilitiesRequest())
        ).limits.max_message_bytes
        assert published == limit
        raw = channel.unary_unary("/tinkergate.v1.CapabilitiesService/GetCapabilities")
        # Field 999 is unknown to the contract, and so skipped.
        head = b"\xba\x3e"
        body = bytes(limit - 5)
        exact = head + _varint(len(body)) + body
        assert len(exact) == limit
        await raw(exact)
        told = await refused(raw(exact + b"\xba\x3e\x00"), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert str(limit) in told
        assert str(limit + 3) in told
        await raw(exact)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


async def test_too_many_calls_at_once_are_refused(open_door):
    async with (
        open_door(max_concurrent_calls=2) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        await refused(create_session(channel), grpc.StatusCode.RESOURCE_EXHAUSTED)
        for watch in watches:
            watch.cancel()


def piece(data: bytes) -> ImportCheckpointRequest:
    message = ImportCheckpointRequest()
    message.file.name = "adapter_config.json"
    message.file.data = data
    return message


def header() -> ImportCheckpointRequest:
    message = ImportCheckpointRequest()
    message.header.name = "adapter"
    return message


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "header: missing: the stream is empty"),
        ([ImportCheckpointRequest()], "header: missing: the first message"),
        ([piece(b"{}"), header()], "header: missing: the first message"),
    ],
)
async def test_an_import_begins_with_its_header(open_door, messages, told):
    async with open_door() as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = CheckpointServiceStub(channel).ImportCheckpoint(iter(messages))
        assert told in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_call_goes_on_while_the_door_closes_within_its_grace(open_door):
    async with open_door() as (door, address), grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        stopping = asyncio.create_task(door.stop(60))
        # New calls are turned away as soon as the door has begun to close.
        with pytest.raises(grpc.aio.AioRpcError):
            await sessions_without_end(channel)
        assert not watch.done()
        watch.cancel()
        await stopping
