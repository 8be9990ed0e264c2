"""How many optimizer steps are in a model's weights, whatever the backend remembers of it and
whatever order its answers come in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinkergate.backends.base import (
    LoadedState,
    ModelFacts,
    ModelSpec,
    OnStart,
    SavedCheckpoint,
    Submission,
    TrainingRequest,
    TrainingResult,
)
from tinkergate.v1 import (
    CheckpointSource,
    CopyCheckpointRequest,
    CreateModelRequest,
    GetModelRequest,
    LoadStateRequest,
    OperationState,
    OptimStepRequest,
    OptimStepResult,
    SaveStateRequest,
)


async def steps_of(house: Any, model: str) -> int:
    told = await house.gateway.models.get(GetModelRequest(model_id=model))
    return int(told.model.optimizer_steps)


async def resume(house: Any, path: str, *, with_optimizer: bool) -> str:
    """A model that is made of a checkpoint."""
    request = CreateModelRequest(
        session_id=await house.session(),
        checkpoint=CheckpointSource(path=path, with_optimizer=with_optimizer),
    )
    done = await house.wait(await house.gateway.models.create(request))
    return str(done.create_model.model_id)


async def load(house: Any, model: str, path: str, *, with_optimizer: bool = True) -> int:
    request = LoadStateRequest(model_id=model, path=path, with_optimizer=with_optimizer)
    done = await house.wait(await house.gateway.training.submit(request))
    assert done.load_state.optimizer_steps == await steps_of(house, model)
    return int(done.load_state.optimizer_steps)


async def test_the_count_of_a_checkpoint_outlives_a_backend_that_does_not_keep_it(
    open_house: Any, accounting: type[Any], make: Any, tmp_path: Path
) -> None:
    class Forgetful(accounting):  # type: ignore[misc]  # only known when the test runs
        async def create_model(self, spec: ModelSpec) -> ModelFacts:
            facts: ModelFacts = await super().create_model(spec)
            return replace(facts, optimizer_steps=0)

        def _result(self, request: TrainingRequest) -> TrainingResult:
            result: TrainingResult = super()._result(request)
            return LoadedState(0) if isinstance(result, LoadedState) else result

    before = Forgetful(folder=tmp_path)
    house = await open_house(backend=before)
    model = await house.model()
    for _ in range(3):
        await house.gateway.training.submit(make.optim_step(model))
    saving = await house.gateway.training.submit(SaveStateRequest(model_id=model, name="a"))
    path = (await house.wait(saving)).save_state.path
    copied = await house.gateway.checkpoint_copies.copy(CopyCheckpointRequest(path=path))
    await house.gateway.close(1)

    after = Forgetful(folder=tmp_path)
    after.saved = before.saved
    house = await open_house(backend=after)
    for held in (path, copied.checkpoint.path):
        resumed = await resume(house, held, with_optimizer=True)
        assert await steps_of(house, resumed) == 3
        assert await load(house, resumed, held, with_optimizer=False) == 0
        assert await load(house, resumed, held) == 3
        anew = await resume(house, held, with_optimizer=False)
        assert await steps_of(house, anew) == 0


@pytest.fixture
async def unordered(open_house: Any, accounting: type[Any], tmp_path: Path) -> Any:
    """A gateway on a backend whose results are there when the test says so."""

    class Unordered(accounting):  # type: ignore[misc]  # only known when the test runs
        def __init__(self) -> None:
            super().__init__(folder=tmp_path, pipeline_depth=8)
            self.results: list[asyncio.Future[TrainingResult]] = []

        async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
            on_start()
            result: asyncio.Future[TrainingResult] = asyncio.get_running_loop().create_future()
            self.results.append(result)
            return Submission(result)

    return await open_house(backend=Unordered())


async def test_results_that_overtake_each_other_are_counted_in_the_models_order(
    unordered: Any, make: Any
) -> None:
    house, results = unordered, unordered.backend.results
    model = await house.model()

    def saving(name: str) -> SaveStateRequest:
        return SaveStateRequest(model_id=model, name=name)

    first = await house.gateway.training.submit(saving("none"))
    await house.until(lambda: len(results) == 1)
    results[0].set_result(SavedCheckpoint(0, has_optimizer=True))
    path = (await house.wait(first)).save_state.path

    requests: list[Any] = [make.optim_step(model), make.optim_step(model), saving("two")]
    requests += [LoadStateRequest(model_id=model, path=path, with_optimizer=True)]
    requests += [make.optim_step(model), make.optim_step(model), saving("one")]
    operations = [await house.gateway.training.submit(request) for request in requests]
    await house.until(lambda: len(results) == 8)
    failed = 5
    for place in reversed(range(7)):
        result = results[place + 1]
        if place == failed:
            result.set_exception(RuntimeError("no"))
        elif isinstance(requests[place], OptimStepRequest):
            result.set_result(OptimStepResult())
        elif isinstance(requests[place], LoadStateRequest):
            result.set_result(LoadedState(0))
        else:
            result.set_result(SavedCheckpoint(0, has_optimizer=True))
        done = await house.wait(operations[place])
        assert (done.state == OperationState.OPERATION_STATE_FAILED) == (place == failed)
    assert await steps_of(house, model) == 1
