"""OpenPI's vision-language-action models at MinT (wire section 13.6). No gateway serves such
models, so the service is one whose answers are written here: what a program says to our door has to
reach it as it is documented, and what it answers has to come back."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from scripted_service import Asked, Reply, ScriptedService

from tinkergate.backends import pauses
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.core.gateway import Gateway
from tinkergate.errors import GatewayError, Kind
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.store import Store
from tinkergate.tensors import tensor_from_array, token_bytes
from tinkergate.v1 import (
    ActRequest,
    Chunk,
    CreateActionSessionRequest,
    CreateModelRequest,
    CreateSessionRequest,
    EncodedTextChunk,
    FinishSessionRequest,
    GetModelRequest,
    ImageChunk,
    LoraConfig,
    ModelInput,
    SaveStateRequest,
    VlaDatum,
    VlaObservation,
    VlaTrainStepRequest,
    WaitOperationRequest,
)

BASE = "openpi/pi0.5"
PIXELS = base64.b64encode(bytes(range(48))).decode()
OBSERVATION = {
    "model_input": {
        "chunks": [
            {"type": "image", "data": PIXELS, "format": "png", "expected_tokens": 256},
            {"type": "image", "data": PIXELS, "format": "jpeg"},
            {"type": "encoded_text", "tokens": [5, 80, 33]},
        ]
    },
    "state": [0.5, -0.25, 3.0],
}
ACTIONS = [[0.5, -1.0], [0.25, 2.0], [0.0, -0.125]]
"""Three moments, two joints."""
STEP = {
    "loss_fn": "flow_matching",
    "data": [{"observation": OBSERVATION, "supervision": {"actions": ACTIONS}}] * 2,
    "adam_params": {"learning_rate": 2e-5, "beta1": 0.9},
    "num_flow_steps": 10,
}
CHUNK = {"actions": [[0.125, -0.5]] * 3, "state": {"horizon": 3, "note": "as it is"}}


class OpenPi:
    """MinT with such a model."""

    def __init__(self) -> None:
        self.changes: dict[str, list[Reply]] = {}
        """Answers to be given first, by route."""

    def __call__(self, asked: Asked) -> Reply:
        if queued := self.changes.get(asked.route):
            return queued.pop(0)
        match asked.route:
            case "client/config":
                return Reply({"pjwt_auth_enabled": False})
            case "auth/token":
                return Reply({"detail": "no such route"}, 404)
            case "create_session":
                return Reply({"session_id": "far-s"})
            case "get_info":
                return Reply({"model_data": {"model_name": BASE}})
            case "retrieve_future":
                return self.result(asked.json["request_id"])
            case "mint/action_sessions":
                return Reply({"action_session_id": "act/7"})
            case "mint/action_sessions/act%2F7/act":
                return Reply(CHUNK)
            case "mint/action_sessions/act%2F7/act_batch":
                return Reply({"results": [CHUNK] * len(asked.json["observations"])})
            case "mint/action_sessions/act%2F7":
                return Reply({"status": "closed"})
            case route:
                return Reply({"request_id": route, "model_id": "far-m"})

    def result(self, request_id: str) -> Reply:
        match request_id:
            case "create_model":
                return Reply({"model_id": "far-m"})
            case "save_weights":
                return Reply({"path": "mint://far-m/weights/before"})
            case _:
                return Reply({"metrics": {"loss:mean": 0.375, "grad_norm:mean": 2.0}})


class Chain(NamedTuple):
    """A program, our gateway with MinT behind it, and what stands for MinT."""

    client: httpx.AsyncClient
    gateway: Gateway
    service: ScriptedService
    answers: OpenPi

    async def post(self, route: str, body: Any) -> Any:
        response = await self.client.post(f"/api/v1/{route}", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def result(self, request_id: str) -> Any:
        return await self.post("retrieve_future", {"request_id": request_id})

    async def model(self) -> str:
        """A model of a new session, by MinT's REST."""
        made = await self.post("create_session", {})
        asked = {
            "session_id": made["session_id"],
            "model_seq_id": 0,
            "base_model": BASE,
            "lora_config": {"rank": 16},
        }
        future = await self.post("create_model", asked)
        return str((await self.result(future["request_id"]))["model_id"])


@pytest.fixture
async def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Chain]:
    monkeypatch.setattr(pauses, "FIRST_PAUSE", 0.01)
    async with AsyncExitStack() as stack:
        answers = OpenPi()
        service = await stack.enter_async_context(ScriptedService(answers))
        settings = TinkerSettings(
            "mint", "mint", base_url=service.url, api_key="sk-k", models=(BASE,)
        )
        gateway = Gateway([TinkerBackend(settings)], Store(f"sqlite:///{tmp_path}/gateway.db"))
        await gateway.start()
        stack.push_async_callback(gateway.close, 1)
        door = HttpDoor(HttpSettings(listen="127.0.0.1:0"), data_dir=tmp_path)
        address = await door.start(gateway)
        stack.push_async_callback(door.stop, 1)
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False)
        )
        yield Chain(client, gateway, service, answers)


@pytest.mark.proves("vla", "mint", "native")
async def test_a_program_trains_and_acts_as_the_service_documents_it(chain: Chain) -> None:
    model_id = await chain.model()
    # A poll that is pending is answered 408 or 503.
    chain.answers.changes["retrieve_future"] = [
        Reply({"type": "try_again"}, 408),
        Reply({"detail": "pending"}, 503),
    ]

    future = await chain.post("mint/vla/train_step", {"model_id": model_id, **STEP})
    told = await chain.result(future["request_id"])

    assert told["metrics"] == {"loss:mean": 0.375, "grad_norm:mean": 2.0}
    (sent,) = chain.service.of("mint/vla/train_step")
    assert sent.json == {"model_id": "far-m", **STEP}
    (created,) = chain.service.of("create_model")
    assert created.json["base_model"] == BASE
    assert created.json["lora_config"]["rank"] == 16

    session_id = model_id.partition(":")[0]
    asked = {"session_id": session_id, "base_model": BASE, "owner_id": "arm-3"}
    action_session = (await chain.post("mint/action_sessions", asked))["action_session_id"]
    place = f"mint/action_sessions/{action_session}"
    assert await chain.post(f"{place}/act", {"observation": OBSERVATION}) == CHUNK
    batch = {"observations": [OBSERVATION, {**OBSERVATION, "state": [1.0]}]}
    assert await chain.post(f"{place}/act_batch", batch) == {"results": [CHUNK, CHUNK]}
    assert (await chain.client.delete(f"/api/v1/{place}")).status_code == 200

    (opened,) = chain.service.of("mint/action_sessions")
    assert opened.json == {"session_id": "far-s", "base_model": BASE, "owner_id": "arm-3"}
    (acted,) = chain.service.of("mint/action_sessions/act%2F7/act")
    assert acted.json == {"observation": OBSERVATION}
    (acted,) = chain.service.of("mint/action_sessions/act%2F7/act_batch")
    assert acted.json == batch
    assert len(chain.service.of("mint/action_sessions/act%2F7")) == 1


def observation() -> VlaObservation:
    """`OBSERVATION` as the contract has it."""
    pixels = base64.b64decode(PIXELS)
    chunks = [
        Chunk(image=ImageChunk(data=pixels, format="png", expected_tokens=256)),
        Chunk(image=ImageChunk(data=pixels, format="jpeg")),
        Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes([5, 80, 33]))),
    ]
    return VlaObservation(model_input=ModelInput(chunks=chunks), state=[0.5, -0.25, 3.0])


async def opened(gateway: Gateway) -> tuple[str, str]:
    """A session and a model."""
    session = (await gateway.sessions.create(CreateSessionRequest())).session.session_id
    asked = CreateModelRequest(session_id=session, base_model=BASE, lora_config=LoraConfig(rank=16))
    creating = await gateway.models.create(asked)
    return session, (await result(gateway, creating.name)).create_model.model_id


async def result(gateway: Gateway, name: str) -> Any:
    wait = WaitOperationRequest(name=name)
    wait.timeout.FromSeconds(60)
    return (await gateway.operations.wait(wait)).operation


async def test_the_contracts_own_messages_say_the_same(chain: Chain) -> None:
    gateway = chain.gateway
    session, model_id = await opened(gateway)
    datum = VlaDatum(observation=observation(), actions=tensor_from_array(np.float32(ACTIONS)))
    request = VlaTrainStepRequest(model_id=model_id, loss_fn="flow_matching", data=[datum, datum])
    request.options.update({name: STEP[name] for name in ("adam_params", "num_flow_steps")})
    done = await result(gateway, (await gateway.mint.vla_train_step(request)).name)
    assert done.vla_train_step.metrics["loss:mean"] == 0.375
    assert chain.service.of("mint/vla/train_step")[0].json == {"model_id": "far-m", **STEP}
    told = await gateway.models.get(GetModelRequest(model_id=model_id))
    assert told.model.optimizer_steps == 1

    # Of a checkpoint, under the name that the service has for it.
    saved = await gateway.training.submit(SaveStateRequest(model_id=model_id, name="before"))
    path = (await result(gateway, saved.name)).save_state.path
    create = CreateActionSessionRequest(session_id=session, model_path=path)
    acting = (await gateway.mint.create_action_session(create)).action_session_id
    answer = await gateway.mint.act(ActRequest(action_session_id=acting, observation=observation()))
    assert list(answer.result["actions"][2]) == [0.125, -0.5]
    (asked,) = chain.service.of("mint/action_sessions")
    assert asked.json == {
        "session_id": "far-s",
        "base_model": BASE,
        "model_path": "mint://far-m/weights/before",
    }
    # It ends with its session.
    await gateway.sessions.finish(FinishSessionRequest(session_id=session))
    while not chain.service.of("mint/action_sessions/act%2F7"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_neither_a_step_nor_an_act_is_ever_repeated(chain: Chain) -> None:
    gateway = chain.gateway
    session, model_id = await opened(gateway)
    create = CreateActionSessionRequest(session_id=session, base_model=BASE)
    acting = (await gateway.mint.create_action_session(create)).action_session_id
    act = ActRequest(action_session_id=acting, observation=observation())
    route = "mint/action_sessions/act%2F7/act"
    chain.answers.changes[route] = [Reply({"detail": "no worker"}, 500)]
    with pytest.raises(GatewayError) as raised:
        await gateway.mint.act(act)
    assert raised.value.kind is Kind.OUTCOME_UNKNOWN
    assert len(chain.service.of(route)) == 1

    chain.answers.changes["mint/vla/train_step"] = [Reply(b"{", 200)]
    datum = VlaDatum(observation=observation(), actions=tensor_from_array(np.float32(ACTIONS)))
    step = VlaTrainStepRequest(model_id=model_id, loss_fn="flow_matching", data=[datum])
    done = await result(gateway, (await gateway.mint.vla_train_step(step)).name)
    assert "nobody can tell what the model has gone through" in done.error.message
    assert len(chain.service.of("mint/vla/train_step")) == 1


async def test_a_step_that_fails_there_tells_why(chain: Chain) -> None:
    gateway = chain.gateway
    _, model_id = await opened(gateway)
    failed = {"error": "pi0.5 needs rank 16", "category": "user"}
    chain.answers.changes["retrieve_future"] = [Reply(failed)]
    datum = VlaDatum(observation=observation(), actions=tensor_from_array(np.float32(ACTIONS)))
    step = VlaTrainStepRequest(model_id=model_id, loss_fn="flow_matching", data=[datum])
    done = await result(gateway, (await gateway.mint.vla_train_step(step)).name)
    assert "pi0.5 needs rank 16" in done.error.message
    told = await gateway.models.get(GetModelRequest(model_id=model_id))
    assert told.model.optimizer_steps == 0
