"""Composition: what is started is stopped, and what cannot start leaves nothing behind."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tinkergate.config import Config, EngineSettings
from tinkergate.ingress.grpc.settings import GrpcSettings
from tinkergate.server import Server, StartError
from tinkergate.v1 import (
    CapabilitiesServiceStub,
    CreateSessionRequest,
    GetCapabilitiesRequest,
    GetSessionRequest,
    SessionServiceStub,
    SessionState,
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A gateway without a backend, on a free port."""
    return Config(
        data_dir=tmp_path / "data",
        grpc=GrpcSettings(listen="127.0.0.1:0"),
        engine=EngineSettings(enabled=False),
    )


async def test_it_serves_from_start_to_stop_and_can_be_started_again(config):
    for _ in range(2):
        server = Server(config)
        addresses = await server.start()
        assert list(addresses) == ["grpc"]
        async with grpc.aio.insecure_channel(str(addresses["grpc"])) as channel:
            stub = CapabilitiesServiceStub(channel)
            assert not (await stub.GetCapabilities(GetCapabilitiesRequest())).backends
        await server.stop(0)
        await server.stop(0)


async def test_sessions_outlive_the_gateway_as_expired_ones(config):
    server = Server(config)
    async with grpc.aio.insecure_channel(str((await server.start())["grpc"])) as channel:
        created = await SessionServiceStub(channel).CreateSession(CreateSessionRequest())
    await server.stop(0)
    server = Server(config)
    async with grpc.aio.insecure_channel(str((await server.start())["grpc"])) as channel:
        request = GetSessionRequest(session_id=created.session.session_id)
        session = (await SessionServiceStub(channel).GetSession(request)).session
        assert session.state == SessionState.SESSION_STATE_EXPIRED
    await server.stop(0)


async def test_a_failed_start_gives_back_the_data_folder(config):
    broken = replace(config, store_url="sqlite:////dev/null/gateway.db")
    with pytest.raises(StartError) as caught:
        await Server(broken).start()
    assert "\n" not in str(caught.value)
    server = Server(config)
    await server.start()
    await server.stop(0)


async def test_a_taken_port_is_found_before_anything_is_touched(config):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match="is in use"):
            await Server(replace(config, grpc=GrpcSettings(listen=listen))).start()
    assert not config.data_dir.exists()


async def test_two_gateways_do_not_share_a_data_folder(config):
    first, second = Server(config), Server(config)
    await first.start()
    try:
        with pytest.raises(StartError, match="another gateway"):
            await second.start()
    finally:
        await first.stop(0)


def test_without_the_engine_pytorch_is_never_loaded(start_gateway):
    gateway = start_gateway(engine=False)
    maps = Path(f"/proc/{gateway.process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert "libtorch" not in maps.read_text()
