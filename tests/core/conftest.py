"""A gateway on the accounting backend, and makers of requests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounting_backend import BASE, AccountingBackend

from tinkergate.core.clock import Clock
from tinkergate.core.gateway import Gateway
from tinkergate.core.settings import CoreSettings
from tinkergate.store import Store
from tinkergate.tensors import (
    tensor_from_array,
    token_bytes,
)
from tinkergate.v1 import (
    Chunk,
    CreateModelRequest,
    CreateSessionRequest,
    Datum,
    EncodedTextChunk,
    ForwardBackwardRequest,
    Operation,
    OptimStepRequest,
    WaitOperationRequest,
)


class ManualClock(Clock):
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def now(self) -> int:
        return round(self.seconds * 1e9)

    def elapsed(self) -> float:
        return self.seconds


class House:
    """A gateway with what a test needs at hand."""

    def __init__(self, gateway: Gateway, backend: AccountingBackend, clock: ManualClock) -> None:
        self.gateway = gateway
        self.backend = backend
        self.clock = clock

    async def session(self) -> str:
        response = await self.gateway.sessions.create(CreateSessionRequest())
        return response.session.session_id

    async def model(self, session_id: str | None = None, **fields: Any) -> str:
        """The id of a new model that is ready."""
        fields.setdefault("base_model", BASE)
        request = CreateModelRequest(session_id=session_id or await self.session(), **fields)
        operation = await self.gateway.models.create(request)
        done = await self.wait(operation)
        assert done.create_model.model_id == operation.model_id, done
        return operation.model_id

    async def wait(self, operation: Operation) -> Operation:
        """The operation once it is done (or after the longest wait that there is)."""
        request = WaitOperationRequest(name=operation.name)
        response = await self.gateway.operations.wait(request)
        return response.operation

    async def until(self, is_met: Callable[[], bool]) -> None:
        await turn_until(is_met)


async def turn_until(is_met: Callable[[], bool]) -> None:
    """Turn the event loop until something has happened on it."""
    while not is_met():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


def datum(weights: Sequence[float], tokens: Sequence[int] | None = None, **inputs: Any) -> Datum:
    """A datum with as many tokens as there are weights."""
    ids = list(range(len(weights))) if tokens is None else list(tokens)
    arrays = {
        "target_tokens": np.arange(len(weights), dtype=np.int64),
        "weights": np.array(weights, np.float32),
    } | inputs
    return Datum(
        model_input=[Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(ids)))],
        loss_fn_inputs={name: tensor_from_array(array) for name, array in arrays.items()},
    )


def forward_backward(
    model_id: str, weight: float, seq_id: int | None = None, **fields: Any
) -> ForwardBackwardRequest:
    return ForwardBackwardRequest(
        model_id=model_id,
        seq_id=seq_id,
        data=[datum([weight, 0.0])],
        loss_fn="cross_entropy",
        **fields,
    )


def optim_step(
    model_id: str, learning_rate: float = 1.0, seq_id: int | None = None, **fields: Any
) -> OptimStepRequest:
    return OptimStepRequest(
        model_id=model_id, seq_id=seq_id, adam={"learning_rate": learning_rate}, **fields
    )


OpenHouse = Callable[..., Awaitable[House]]


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with all migrations run, to copy: migrating takes a while."""
    path = tmp_path_factory.mktemp("database") / "gateway.db"
    store = Store(f"sqlite:///{path}")
    store.open()
    store.close()
    return path


@pytest.fixture
async def open_house(tmp_path: Path, fresh_database: Path) -> AsyncIterator[OpenHouse]:
    """Opens gateways on the test's own store; each is closed at the end unless it was before."""
    houses: list[House] = []
    shutil.copy(fresh_database, tmp_path / "gateway.db")

    async def open_(
        *, pipeline_depth: int = 4, backend: AccountingBackend | None = None, **settings: Any
    ) -> House:
        backend = backend or AccountingBackend(pipeline_depth=pipeline_depth, folder=tmp_path)
        clock = ManualClock()
        store = Store(f"sqlite:///{tmp_path}/gateway.db")
        gateway = Gateway([backend], store, CoreSettings(**settings), BASE, clock)
        await gateway.start()
        houses.append(House(gateway, backend, clock))
        return houses[-1]

    yield open_
    for house in houses:
        if "close" not in house.backend.events:
            for gate in (house.backend.gate, house.backend.create_gate, house.backend.sample_gate):
                gate.set()
            await house.gateway.close(5)


@pytest.fixture
async def house(open_house: OpenHouse) -> House:
    return await open_house()


@pytest.fixture
def accounting() -> type[AccountingBackend]:
    """The backend, for tests that give it more to do."""
    return AccountingBackend


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return turn_until


class Make:
    """The makers of requests, for tests to write them shortly."""

    datum = staticmethod(datum)
    forward_backward = staticmethod(forward_backward)
    optim_step = staticmethod(optim_step)


@pytest.fixture
def make() -> type[Make]:
    return Make
