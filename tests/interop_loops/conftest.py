"""Gateways whose Loops door is of each capacity kind, for the real SDK."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import loops_reference
import pytest
from interop_sdk import KEY
from loops_sdk import LoopsSdk
from tests.conftest import GatewayProcess

from tinkergate_client import Session, connect


class Door(NamedTuple):
    """A gateway as its users see it."""

    process: GatewayProcess
    capacity: str
    base_model: str

    @property
    def http(self) -> str:
        return self.process.http_address


@pytest.fixture(scope="session")
def doors(
    micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Door]]:
    """One gateway of each kind, over the embedded engine."""
    with ExitStack() as stack:
        found = {}
        for capacity in ("serverless", "dedicated"):
            gateway = GatewayProcess(
                tmp_path_factory.mktemp("gateway"),
                [
                    *("--model", str(micro_model_dir), "--http", "127.0.0.1:0"),
                    *("--loops-capacity", capacity),
                ],
                # A model this small gains nothing by more threads, and there are two gateways.
                {"TINKERGATE_API_KEY": KEY, "TINKERGATE_ENGINE_THREADS": "1"},
            )
            stack.callback(gateway.stop)
            found[capacity] = Door(gateway, capacity, str(micro_model_dir))
        for door in found.values():
            door.process.wait_until_listening()
        yield found


@pytest.fixture(params=["serverless", "dedicated"])
def door(request: pytest.FixtureRequest, doors: dict[str, Door]) -> Door:
    """The gateway of each kind."""
    return doors[request.param]


@pytest.fixture
def sdk(door: Door, tmp_path: Path) -> LoopsSdk:
    """The SDK at the gateway of each kind."""
    return LoopsSdk(
        tmp_path / "home",
        url=f"http://{door.http}",
        base_model=door.base_model,
        capacity=door.capacity,
    )


@pytest.fixture(scope="session")
def session(doors: dict[str, Door]) -> Iterator[Session]:
    """A session of the gRPC client."""
    address = doors["dedicated"].process.address
    with (
        connect(address, api_key=KEY, patience=60.0) as client,
        client.create_session() as opened,
    ):
        yield opened


@pytest.fixture(scope="session")
def training_reference(session: Session, micro_model_dir: Path) -> loops_reference.Seen:
    return loops_reference.training(session, str(micro_model_dir))


@pytest.fixture(scope="session")
def saving_reference(session: Session, micro_model_dir: Path) -> loops_reference.Seen:
    return loops_reference.saving(session, str(micro_model_dir))


@pytest.fixture(scope="session")
def sampling_reference(session: Session, micro_model_dir: Path) -> dict[str, Any]:
    return loops_reference.sampling(session, str(micro_model_dir))


@pytest.fixture(scope="session")
def chunks_reference(session: Session, micro_model_dir: Path) -> loops_reference.Seen:
    return loops_reference.chunks(session, str(micro_model_dir))
