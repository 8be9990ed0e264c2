"""One gateway with all backends, and the services behind three of them: gateways of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.conftest import GatewayProcess

from tinkergate_client import Client, connect

KEYS = {
    "front": "tml-front",
    "tinker": "tml-upstream",
    "mint": "sk-mint-upstream",
    "loops": "loops-upstream",
}
CONFIG = """
default_backend = "local"

[backends.local]
kind = "local"
models = ["{model}"]

[backends.tinker]
kind = "tinker"
base_url = "http://{tinker}"
api_key_env = "UPSTREAM_TINKER"

[backends.mint]
kind = "mint"
base_url = "http://{mint}"
api_key_env = "UPSTREAM_MINT"

[backends.loops]
kind = "loops"
base_url = "http://{loops}"
api_key_env = "UPSTREAM_LOOPS"
"""


class Front(NamedTuple):
    """The gateway that programs talk to."""

    grpc: str
    http: str
    base_model: str
    """The one base model, on all backends."""
    key: str

    def connect(self, key: str = KEYS["front"]) -> Client:
        return connect(self.grpc, api_key=key, patience=60.0)


@pytest.fixture(scope="session")
def front(micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The gateway in front, with the backends `local`, `tinker`, `mint` and `loops`."""
    folder = tmp_path_factory.mktemp("compatibility")
    started: list[GatewayProcess] = []

    def start(name: str, key: str, *flags: str, **environment: str) -> GatewayProcess:
        place = folder / name
        place.mkdir()
        environment["TINKERGATE_API_KEY"] = key
        started.append(GatewayProcess(place, ["--http", "127.0.0.1:0", *flags], environment))
        started[-1].wait_until_listening()
        return started[-1]

    model = ("--model", str(micro_model_dir))
    try:
        upstreams = {
            "tinker": start("tinker", KEYS["tinker"], *model).http_address,
            "mint": start("mint", KEYS["mint"], *model, "--profile", "mint").http_address,
            "loops": start("loops", KEYS["loops"], *model).http_address,
        }
        config = folder / "front.toml"
        config.write_text(CONFIG.format(model=micro_model_dir, **upstreams))
        gateway = start(
            "front",
            KEYS["front"],
            *("--config", str(config)),
            UPSTREAM_TINKER=KEYS["tinker"],
            UPSTREAM_MINT=KEYS["mint"],
            UPSTREAM_LOOPS=KEYS["loops"],
        )
        yield Front(gateway.address, gateway.http_address, str(micro_model_dir), KEYS["front"])
    finally:
        codes = [gateway.stop() for gateway in reversed(started)]
    assert codes == [0] * len(codes), [gateway.log() for gateway in started]


@pytest.fixture(scope="session")
def client(front: Front) -> Iterator[Client]:
    """A client of the gateway in front."""
    with front.connect() as client:
        yield client
