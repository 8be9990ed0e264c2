"""Loops' HTTP API on a real socket, over a real gateway with the micro model."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
import pytest
from local_backend import BASE, make_backend

from tinkergate.core.clock import Clock
from tinkergate.core.gateway import Gateway
from tinkergate.core.settings import CoreSettings
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.store import Store

TOKENS = [5, 9, 200, 31, 77, 4, 18]


def datum(tokens: list[int] = TOKENS, **inputs: Any) -> dict[str, Any]:
    """A datum whose targets are the next tokens, with further inputs; lists of floats become
    tensors."""
    told = {"target_tokens": {"data": tokens[1:], "dtype": "int64", "shape": [len(tokens) - 1]}}
    for name, value in inputs.items():
        if isinstance(value, list):
            value = {"data": value, "dtype": "float32", "shape": [len(value)]}
        told[name] = value
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": tokens[:-1]}]},
        "loss_fn_inputs": {name: value for name, value in told.items() if value is not None},
        "routed_experts_ref": None,
    }


class Trainer:
    """A run's trainer, used as the SDK does."""

    def __init__(self, loops: Loops, run: dict[str, Any]) -> None:
        self.run = run
        self.run_id: str = run["id"]
        self._client = loops.client
        self._url: str = run["base_url"]
        self._seq = itertools.count(1)
        self.headers = {"x-run-id": self.run_id}

    async def post(
        self, op: str, body: dict[str, Any], *, seq_id: int | None = None, key: str = ""
    ) -> httpx.Response:
        """Submit an operation, with the next number unless another is given."""
        body = {"run_id": self.run_id, "model": BASE, **body}
        body["seq_id"] = next(self._seq) if seq_id is None else seq_id
        headers = {**self.headers, "idempotency-key": key or secrets.token_hex(16)}
        return await self._client.post(f"{self._url}/{op}", json=body, headers=headers)

    async def begin(self, op: str, body: dict[str, Any], **more: Any) -> str:
        """The id of an operation that was accepted."""
        answer = await self.post(op, body, **more)
        assert answer.status_code == 202, answer.text
        assert answer.json()["schema_version"] == 1
        return str(answer.json()["operation_id"])

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self._client.get(f"{self._url}/{path}", headers=self.headers | headers)

    async def poll(self, operation_id: str) -> dict[str, Any]:
        """What came of an operation."""
        while True:
            answer = await self.get(f"operations/{quote(operation_id, safe='')}")
            if answer.status_code != 408:
                assert answer.status_code == 200, answer.text
                told: dict[str, Any] = answer.json()
                return told

    async def result(self, op: str, body: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The result of an operation that must succeed."""
        told = await self.poll(await self.begin(op, body, **more))
        assert told["status"] == "done", told
        result: dict[str, Any] = told["result"]
        return result

    async def init(self, rank: int = 4, **more: Any) -> dict[str, Any]:
        return await self.result(
            "init_trainer_server", {"lora_rank": rank, "base_model": BASE}, **more
        )

    async def backward(self, *data: dict[str, Any], **more: Any) -> dict[str, Any]:
        body = {"data": list(data), "loss_fn": "cross_entropy", "loss_fn_config": None, **more}
        return await self.result("forward_backward", body)

    async def step(self, **params: float) -> dict[str, Any]:
        params = {"learning_rate": 1e-2, "grad_clip_norm": 0.0, **params}
        return await self.result("optim_step", {"adam_params": params})

    async def publish(self, name: str) -> dict[str, Any]:
        body = {"name": name, "bump_version": True}
        return await self.result("save_weights_for_sampler", body)


class Loops:
    """A client that does what the SDK does."""

    def __init__(self, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.client = client
        self._session_id = ""

    async def post(self, route: str, body: Any = None, **more: Any) -> httpx.Response:
        return await self.client.post(f"/v1/{route}", json=body, **more)

    async def get(self, route: str, **query: Any) -> httpx.Response:
        return await self.client.get(f"/v1/{route}", params=query)

    async def ok(self, route: str, body: Any = None) -> Any:
        answer = await self.post(route, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def told(self, route: str, **query: Any) -> Any:
        answer = await self.get(route, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def session(self) -> str:
        if not self._session_id:
            answer = await self.client.post("/v1/loops/sessions")
            self._session_id = answer.json()["session"]["id"]
        return self._session_id

    async def trainer(self, *, init: bool = True, **more: Any) -> Trainer:
        """A trainer of this client's session."""
        body = {
            "session_id": await self.session(),
            "base_model": BASE,
            "lora_rank": 4,
            "seed": 1,
            **more,
        }
        trainer = Trainer(self, (await self.ok("loops/trainers", body))["run"])
        if init:
            await trainer.init(body["lora_rank"])
        return trainer

    async def sampler(self, **source: Any) -> dict[str, Any]:
        body = {"session_id": await self.session(), **(source or {"base_model": BASE})}
        sampler: dict[str, Any] = (await self.ok("loops/samplers", body))["sampler"]
        return sampler

    async def sample(self, sampler: dict[str, Any], **more: Any) -> httpx.Response:
        """Submit a sample call. `headers` name whose it is; `key` its own."""
        headers = {"idempotency-key": more.pop("key", "") or secrets.token_hex(16)}
        headers |= more.pop("headers", {"x-sampler-id": sampler["id"]})
        body = {"prompt": [7, 8, 9], "n": 1, "max_tokens": 4, "temperature": 0.0, "model": BASE}
        url = f"{sampler['base_url']}/sample"
        return await self.client.post(url, json=body | more, headers=headers)

    async def drawn(self, sampler: dict[str, Any], **more: Any) -> dict[str, Any]:
        """What a shared sampler drew."""
        answer = await self.sample(sampler, **more)
        assert answer.status_code == 202, answer.text
        told = await self.poll_sample(sampler, answer.json()["operation_id"], **more)
        assert told["status"] == "done", told
        result: dict[str, Any] = told["result"]
        return result

    async def poll_sample(
        self, sampler: dict[str, Any], operation_id: str, **more: Any
    ) -> dict[str, Any]:
        headers = more.get("headers", {"x-sampler-id": sampler["id"]})
        url = f"{sampler['base_url']}/operations/{quote(operation_id, safe='')}"
        while True:
            answer = await self.client.get(url, headers=headers)
            if answer.status_code != 408:
                assert answer.status_code == 200, answer.text
                told: dict[str, Any] = answer.json()
                return told


OpenLoops = Callable[..., contextlib.AbstractAsyncContextManager[Loops]]


@pytest.fixture
def open_loops(micro_model_dir: Path, tmp_path: Path) -> OpenLoops:
    """Opens a door: `async with open_loops("dedicated", api_keys=["k"], key="k") as loops`."""

    @contextlib.asynccontextmanager
    async def start(
        capacity: Literal["serverless", "dedicated"] = "serverless",
        *,
        api_keys: tuple[str, ...] = (),
        authorization: str = "",
        core: dict[str, Any] | None = None,
        clock: Clock | None = None,
        **http: Any,
    ) -> AsyncIterator[Loops]:
        gateway = Gateway(
            [make_backend(micro_model_dir, tmp_path)],
            Store(f"sqlite:///{tmp_path / 'gateway.db'}"),
            CoreSettings(**(core or {})),
            BASE,
            clock,
        )
        await gateway.start()
        door = HttpDoor(
            HttpSettings(**{"listen": "127.0.0.1:0", "loops_capacity": capacity, **http}),
            data_dir=tmp_path,
            api_keys=api_keys,
        )
        try:
            address = await door.start(gateway)
            headers = {"authorization": authorization} if authorization else {}
            async with httpx.AsyncClient(
                base_url=f"http://{address}", headers=headers, timeout=60, trust_env=False
            ) as client:
                yield Loops(gateway, client)
        finally:
            await door.drain()
            await gateway.close(0)
            await door.stop(1)

    return start


class HandClock(Clock):
    """A clock that is set by hand."""

    seconds = 0.0

    def elapsed(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def loops(open_loops: OpenLoops) -> AsyncIterator[Loops]:
    """A serverless door without keys."""
    async with open_loops() as opened:
        yield opened


@pytest.fixture
async def dedicated(open_loops: OpenLoops) -> AsyncIterator[Loops]:
    """A dedicated door without keys."""
    async with open_loops("dedicated") as opened:
        yield opened


@pytest.fixture
def make_datum() -> Callable[..., dict[str, Any]]:
    return datum
