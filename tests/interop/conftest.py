"""Gateways with the Tinker-dialect door: one alone, and chains of two, for the real SDKs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import interop_reference
import pytest
from interop_sdk import KEY, MINT_KEY, TINKERS, Sdk
from tests.conftest import GatewayProcess

from tinkergate_client import Client, Session, connect

CHAIN = """
default_backend = "{kind}"

[backends.{kind}]
kind = "{kind}"
base_url = "http://{upstream}"
api_key_env = "UPSTREAM_KEY"
"""


class Door(NamedTuple):
    """A gateway as its users see it."""

    grpc: str
    http: str
    base_model: str
    data_dir: Path
    """Of the gateway that has the engine."""

    def connect(self) -> Client:
        return connect(self.grpc, api_key=KEY, patience=60.0)


StartDoor = Callable[..., GatewayProcess]


@pytest.fixture(scope="session")
def start_door(
    micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartDoor]:
    """Starts gateways with an HTTP door; with the micro model unless a backend is configured."""
    with ExitStack() as stack:

        def start(
            *flags: str,
            engine: bool = True,
            environment: Mapping[str, str] | None = None,
            keys: str = KEY,
        ) -> GatewayProcess:
            model = ["--model", str(micro_model_dir)] if engine else []
            gateway = GatewayProcess(
                tmp_path_factory.mktemp("gateway"),
                [*model, "--http", "127.0.0.1:0", *flags],
                {"TINKERGATE_API_KEY": keys, **(environment or {})},
            )
            stack.callback(gateway.stop)
            gateway.wait_until_listening()
            return gateway

        yield start


@pytest.fixture(scope="session")
def direct(start_door: StartDoor, micro_model_dir: Path) -> Door:
    """One gateway over the embedded engine."""
    gateway = start_door()
    return Door(gateway.address, gateway.http_address, str(micro_model_dir), gateway.data_dir)


@pytest.fixture(scope="session")
def chains(
    start_door: StartDoor, micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Door]:
    """Chains by the backend of the first gateway, "tinker", "mint" or "loops"; the second is that
    service, over the embedded engine. Each is started when it is first asked for."""
    doors: dict[str, Door] = {}

    def chain(kind: str) -> Door:
        if kind not in doors:
            key = MINT_KEY if kind == "mint" else KEY
            flags = ["--profile", "mint"] if kind == "mint" else []
            service = start_door(*flags, keys=key)
            config = tmp_path_factory.mktemp("chain") / "gateway.toml"
            config.write_text(CHAIN.format(kind=kind, upstream=service.http_address))
            gateway = start_door(
                *("--config", str(config)),
                engine=False,
                keys=f"{KEY},{MINT_KEY}",
                environment={"UPSTREAM_KEY": key},
            )
            doors[kind] = Door(
                gateway.address,
                gateway.http_address,
                str(micro_model_dir),
                service.data_dir,
            )
        return doors[kind]

    return chain


@pytest.fixture(scope="session")
def make_sdk(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Sdk]:
    """An SDK by its environment's name, as a user of a door."""

    def make(name: str, door: Door, key: str = KEY) -> Sdk:
        return Sdk(
            name,
            tmp_path_factory.mktemp("home"),
            url=f"http://{door.http}",
            key=key,
            base_model=door.base_model,
        )

    return make


@pytest.fixture(params=TINKERS)
def tinker(request: pytest.FixtureRequest) -> str:
    """Each version of Tinker's SDK, by its environment's name."""
    name: str = request.param
    return name


@pytest.fixture(params=["direct", "tinker", "mint"])
def door(request: pytest.FixtureRequest, direct: Door, chains: Callable[[str], Door]) -> Door:
    """The gateway over the engine, and the chains of Tinker's dialect. Tests that say so run with
    "loops" too."""
    return direct if request.param == "direct" else chains(request.param)


@pytest.fixture
def sdk(tinker: str, door: Door, make_sdk: Callable[..., Sdk]) -> Sdk:
    """Each version of Tinker's SDK at each door."""
    return make_sdk(tinker, door)


@pytest.fixture
def direct_sdk(tinker: str, direct: Door, make_sdk: Callable[..., Sdk]) -> Sdk:
    """Each version of Tinker's SDK at the gateway over the engine."""
    return make_sdk(tinker, direct)


@pytest.fixture(scope="session")
def session(direct: Door) -> Iterator[Session]:
    """A session of the gRPC client at the gateway over the engine."""
    with direct.connect() as client, client.create_session() as session:
        yield session


@pytest.fixture(scope="session")
def training_reference(session: Session, direct: Door) -> interop_reference.Seen:
    return interop_reference.training(session, direct.base_model)


@pytest.fixture(scope="session")
def loops_training_reference(session: Session, direct: Door) -> interop_reference.Seen:
    """Of the adapter that Loops makes, which leaves the unembedding as it is."""
    return interop_reference.training(session, direct.base_model, train_unembed=False)


@pytest.fixture(scope="session")
def chunks_reference(session: Session, direct: Door) -> interop_reference.Seen:
    return interop_reference.chunks(session, direct.base_model, 2500)


@pytest.fixture(scope="session")
def checkpoints_reference(session: Session, direct: Door) -> interop_reference.Seen:
    return interop_reference.checkpoints(session, direct.base_model)


@pytest.fixture(scope="session")
def sampling_reference(session: Session, direct: Door) -> dict[str, interop_reference.Seen]:
    return interop_reference.sampling(session, direct.base_model)
