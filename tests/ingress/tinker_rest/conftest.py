"""Tinker's REST API on a real socket, over a real gateway with the micro model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_backend import BASE, make_backend

from tinkergate.core.gateway import Gateway
from tinkergate.core.settings import CoreSettings
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.store import Store


class Rest:
    """A client of the dialect that does what the SDKs do, and a session of its own."""

    def __init__(self, gateway: Gateway, door: HttpDoor, client: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.door = door
        self.client = client
        self.session_id = ""

    async def post(self, route: str, body: Any = None, **more: Any) -> httpx.Response:
        if body is not None:
            more["json"] = body
        return await self.client.post(f"/api/v1/{route}", **more)

    async def get(self, route: str) -> httpx.Response:
        return await self.client.get(f"/api/v1/{route}")

    async def ok(self, route: str, body: Any = None, **more: Any) -> Any:
        """The JSON of an answer that must be 200."""
        response = await self.post(route, body, **more)
        assert response.status_code == 200, response.text
        return response.json()

    async def retrieve(self, request_id: str, accept: str = "application/json") -> httpx.Response:
        """The answer of a future, polled for until it is there."""
        while True:
            response = await self.post(
                "retrieve_future",
                {"request_id": request_id, "allow_metadata_only": False},
                headers={"accept": accept},
            )
            if response.status_code != 408:
                return response

    async def result(self, route: str, body: Any, **more: Any) -> Any:
        """The JSON result of a route that answers a future."""
        future = await self.ok(route, body, **more)
        response = await self.retrieve(future["request_id"])
        assert response.status_code == 200, response.text
        return response.json()

    async def session(self) -> str:
        if not self.session_id:
            self.session_id = (await self.ok("create_session", {}))["session_id"]
        return self.session_id

    async def model(self, number: int = 0, **more: Any) -> str:
        """The id of a model of this client's session."""
        body = {
            "session_id": await self.session(),
            "model_seq_id": number,
            "base_model": BASE,
            "lora_config": {"rank": 4, "seed": 1, "train_unembed": False},
            "type": "create_model",
            **more,
        }
        result = await self.result("create_model", body)
        return str(result["model_id"])

    async def sampler(self, number: int = 0, **source: Any) -> str:
        body = {
            "session_id": await self.session(),
            "sampling_session_seq_id": number,
            **(source or {"base_model": BASE}),
        }
        return str((await self.ok("create_sampling_session", body))["sampling_session_id"])


OpenRest = Callable[..., contextlib.AbstractAsyncContextManager[Rest]]


@pytest.fixture
def open_rest(micro_model_dir: Path, tmp_path: Path) -> OpenRest:
    """Opens a door: `async with open_rest(api_keys=["tml-k"], key="tml-k") as rest`."""

    @contextlib.asynccontextmanager
    async def start(
        *,
        api_keys: tuple[str, ...] = (),
        key: str = "",
        profile: Any = "full",
        core: dict[str, Any] | None = None,
        **http: Any,
    ) -> AsyncIterator[Rest]:
        gateway = Gateway(
            [make_backend(micro_model_dir, tmp_path)],
            Store(f"sqlite:///{tmp_path / 'gateway.db'}"),
            CoreSettings(**(core or {})),
            BASE,
        )
        await gateway.start()
        door = HttpDoor(
            HttpSettings(**{"listen": "127.0.0.1:0", **http}),
            data_dir=tmp_path,
            api_keys=api_keys,
            profile=profile,
        )
        try:
            address = await door.start(gateway)
            headers = {"x-api-key": key} if key else {}
            async with httpx.AsyncClient(
                base_url=f"http://{address}", headers=headers, timeout=60, trust_env=False
            ) as client:
                yield Rest(gateway, door, client)
        finally:
            await door.drain()
            await gateway.close(0)
            await door.stop(1)

    return start


@pytest.fixture
async def rest(open_rest: OpenRest) -> AsyncIterator[Rest]:
    """A door without keys."""
    async with open_rest() as opened:
        yield opened
