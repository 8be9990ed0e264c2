"""The HTTP door over the embedded engine, on a real socket, with one trained model behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_backend import BASE, batch, make_backend, step

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.store import Store
from tinkergate.v1 import (
    CreateModelRequest,
    CreateSessionRequest,
    LoraConfig,
    Operation,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    WaitOperationRequest,
)

KEY = "tml-a-key-of-the-tests"

_SAVES = {
    "weights": SaveStateRequest,
    "sampler_weights": SaveWeightsForSamplerRequest,
    "external_weights": SaveWeightsExternalRequest,
}


class House:
    """A gateway, its door, and a client that has a key."""

    def __init__(self, gateway: Gateway, url: str, client: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.url = url
        self.client = client

    async def session(self, **fields: Any) -> str:
        response = await self.gateway.sessions.create(CreateSessionRequest(**fields))
        return response.session.session_id

    async def model(self, session_id: str = "", **fields: Any) -> str:
        """A model whose weights are not those that it was made with."""
        request = CreateModelRequest(
            session_id=session_id or await self.session(),
            base_model=BASE,
            lora_config=LoraConfig(rank=4, seed=1, train_unembed=False),
            **fields,
        )
        operation = await self.wait(await self.gateway.models.create(request))
        model_id = operation.create_model.model_id
        await self.gateway.training.submit(batch(model_id))
        await self.wait(await self.gateway.training.submit(step(model_id)))
        return model_id

    async def save(self, model_id: str, kind: str, name: str, **fields: Any) -> str:
        request = _SAVES[kind](model_id=model_id, name=name, **fields)
        done = await self.wait(await self.gateway.training.submit(request))
        assert not done.HasField("error"), done.error
        return f"tinker://{model_id}/{kind}/{name}"

    async def wait(self, operation: Operation) -> Operation:
        wanted = WaitOperationRequest(name=operation.name)
        return (await self.gateway.operations.wait(wanted)).operation

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.client.get(f"/api/v1/{path}", **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return await self.client.post(f"/api/v1/{path}", json=body, **more)

    @staticmethod
    def route(path: str) -> str:
        """The route of a checkpoint."""
        model, kind, name = path.removeprefix("tinker://").split("/")
        return f"training_runs/{model}/checkpoints/{kind}/{name}"


OpenHouse = Callable[..., Awaitable[House]]


@pytest.fixture
async def open_house(micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[OpenHouse]:
    """Opens doors with other settings than usual; all are closed at the end."""
    opened: list[tuple[HttpDoor, Gateway, httpx.AsyncClient]] = []

    async def open_(profile: Any = "full", **settings: Any) -> House:
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        gateway = Gateway(
            [make_backend(micro_model_dir, folder)], Store(f"sqlite:///{folder}/gateway.db")
        )
        await gateway.start()
        door = HttpDoor(
            HttpSettings(listen="127.0.0.1:0", **settings),
            data_dir=folder,
            api_keys=[KEY, "sk-" + KEY],
            profile=profile,
        )
        url = f"http://{await door.start(gateway)}"
        key = KEY if profile == "full" else "sk-" + KEY
        client = httpx.AsyncClient(
            base_url=url, headers={"X-API-Key": key}, timeout=30, trust_env=False
        )
        opened.append((door, gateway, client))
        return House(gateway, url, client)

    yield open_
    for door, gateway, client in opened:
        await client.aclose()
        await door.stop(1)
        await gateway.close(1)


@pytest.fixture
async def house(open_house: OpenHouse) -> House:
    return await open_house()
