from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    CancelOperationRequest,
    CheckpointSource,
    CreateModelRequest,
    ErrorReason,
    FinishSessionRequest,
    GetModelRequest,
    GetOperationRequest,
    ListModelsRequest,
    LoraConfig,
    ModelState,
    OperationKind,
    OperationState,
    OptimizerConfig,
    QueueState,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    UnloadModelRequest,
)

BASE = "accounts/small"


async def test_create_answers_the_facts(house: Any) -> None:
    session_id = await house.session()
    operation = await house.gateway.models.create(
        CreateModelRequest(
            session_id=session_id,
            base_model="small",
            lora_config=LoraConfig(rank=8),
            user_metadata={"k": "v"},
        )
    )
    assert operation.kind == OperationKind.OPERATION_KIND_CREATE_MODEL
    assert operation.model_id == f"{session_id}:train:0"
    done = await house.wait(operation)
    assert done.create_model.model_id == operation.model_id
    got = await house.gateway.models.get(GetModelRequest(model_id=operation.model_id))
    model = got.model
    assert model.state == ModelState.MODEL_STATE_READY
    assert model.base_model == BASE
    assert model.backend == "books"
    assert model.lora_config == LoraConfig(rank=8, seed=1, alpha=32.0)
    assert model.optimizer_config.type == "adamw"
    assert (model.vocab_size, model.max_context_length) == (100, 32)
    assert (model.arch, model.tokenizer_id) == ("Accounts", "accounts/tokenizer")
    assert model.next_seq_id == 1
    assert dict(model.user_metadata) == {"k": "v"}


async def test_model_seq_id_is_an_identity(house: Any) -> None:
    session_id = await house.session()
    create = house.gateway.models.create

    def request(**fields: Any) -> CreateModelRequest:
        return CreateModelRequest(session_id=session_id, base_model=BASE, **fields)

    both = await asyncio.gather(create(request(model_seq_id=3)), create(request(model_seq_id=3)))
    assert both[0].name == both[1].name
    assert both[0].model_id == f"{session_id}:train:3"
    with pytest.raises(GatewayError) as caught:
        await create(request(model_seq_id=3, lora_config=LoraConfig(rank=2)))
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT
    counted = await create(request())
    assert counted.model_id == f"{session_id}:train:0"
    with pytest.raises(GatewayError) as caught:
        await create(request(model_seq_id=0))
    assert caught.value.kind is Kind.CONFLICT
    by_request = await create(request(request_id="u"))
    assert (await create(request(request_id="u"))).name == by_request.name
    await house.wait(by_request)
    assert len(house.backend.accounts) == 3


async def test_training_may_be_submitted_while_the_model_is_being_made(
    house: Any, make: Any
) -> None:
    house.backend.create_gate.clear()
    created = await house.gateway.models.create(
        CreateModelRequest(session_id=await house.session(), base_model=BASE)
    )
    submit = house.gateway.training.submit
    early = [await submit(make.forward_backward(created.model_id, 2.0, n)) for n in (2, 1)]
    got = await house.gateway.models.get(GetModelRequest(model_id=created.model_id))
    assert got.model.state == ModelState.MODEL_STATE_CREATING
    house.backend.create_gate.set()
    for operation in early:
        assert (await house.wait(operation)).state == OperationState.OPERATION_STATE_SUCCEEDED
    assert house.backend.accounts[created.model_id].gradient == 4.0


async def test_the_making_of_a_model_tells_why_it_waits(house: Any) -> None:
    house.backend.create_gate.clear()
    request = CreateModelRequest(session_id=await house.session(), base_model=BASE)
    created = await house.gateway.models.create(request)
    get = house.gateway.operations.get
    told = (await get(GetOperationRequest(name=created.name))).operation
    assert (told.queue_state, told.queue_state_reason) == (QueueState.QUEUE_STATE_ACTIVE, "")
    await asyncio.sleep(0)
    spec = house.backend.specs[created.model_id]
    spec.on_state(QueueState.QUEUE_STATE_PAUSED_CAPACITY, "trainer r is DEPLOYING")
    told = (await get(GetOperationRequest(name=created.name))).operation
    assert told.queue_state == QueueState.QUEUE_STATE_PAUSED_CAPACITY
    assert told.queue_state_reason == "trainer r is DEPLOYING"
    house.backend.create_gate.set()
    done = await house.wait(created)
    assert done.state == OperationState.OPERATION_STATE_SUCCEEDED
    assert done.queue_state_reason == ""


@pytest.mark.parametrize("exact", [False, True])
async def test_whether_another_adapter_will_do_is_the_callers_to_say(
    house: Any, exact: bool
) -> None:
    request = CreateModelRequest(
        session_id=await house.session(), base_model=BASE, exact_adapter=exact
    )
    created = await house.gateway.models.create(request)
    await house.wait(created)
    assert house.backend.specs[created.model_id].exact_adapter is exact


async def test_a_model_that_cannot_be_made_fails_what_waits_for_it(house: Any, make: Any) -> None:
    house.backend.create_gate.clear()
    house.backend.fail_create = GatewayError(
        Kind.EXHAUSTED, ErrorReason.ERROR_REASON_QUEUE_FULL, "no memory"
    )
    created = await house.gateway.models.create(
        CreateModelRequest(session_id=await house.session(), base_model=BASE)
    )
    waiting = await house.gateway.training.submit(make.forward_backward(created.model_id, 1.0, 1))
    house.backend.create_gate.set()
    assert (await house.wait(created)).error.message == "no memory"
    failed = await house.wait(waiting)
    assert failed.error.reason == ErrorReason.ERROR_REASON_MODEL_NOT_READY
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(created.model_id, 1.0, 2))
    assert caught.value.metadata["state"] == "failed"


async def test_making_can_be_cancelled(house: Any) -> None:
    house.backend.create_gate.clear()
    created = await house.gateway.models.create(
        CreateModelRequest(session_id=await house.session(), base_model=BASE)
    )
    response = await house.gateway.operations.cancel(CancelOperationRequest(name=created.name))
    assert response.operation.state == OperationState.OPERATION_STATE_CANCELLED
    assert house.backend.accounts == {}


async def test_the_end_of_the_session_stops_the_making(house: Any, make: Any) -> None:
    house.backend.create_gate.clear()
    session_id = await house.session()
    created = await house.gateway.models.create(
        CreateModelRequest(session_id=session_id, base_model=BASE)
    )
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=session_id))
    failed = await house.wait(created)
    assert failed.error.reason == ErrorReason.ERROR_REASON_SESSION_ENDED
    assert house.backend.accounts == {}


async def test_create_from_a_checkpoint(house: Any, make: Any) -> None:
    model = await house.model()
    submit, wait = house.gateway.training.submit, house.wait
    await submit(make.forward_backward(model, 3.0))
    await submit(make.optim_step(model, 1.0))
    path = (await wait(await submit(SaveStateRequest(model_id=model)))).save_state.path
    weights = (
        await wait(await submit(SaveWeightsForSamplerRequest(model_id=model, name="w")))
    ).save_weights_for_sampler.path

    with_optimizer = await house.model(
        base_model=None, checkpoint=CheckpointSource(path=path, with_optimizer=True)
    )
    without = await house.model(base_model=None, checkpoint=CheckpointSource(path=path))
    assert [house.backend.accounts[m].value for m in (with_optimizer, without)] == [3.0, 3.0]
    steps = [
        (await house.gateway.models.get(GetModelRequest(model_id=m))).model.optimizer_steps
        for m in (with_optimizer, without)
    ]
    assert steps == [1, 0]

    session_id = await house.session()

    async def refused(**fields: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await house.gateway.models.create(CreateModelRequest(session_id=session_id, **fields))
        return caught.value

    source = CheckpointSource(path=path)
    error = await refused(checkpoint=source, lora_config=LoraConfig(rank=4))
    assert error.violations[0].field == "lora_config"
    error = await refused(checkpoint=CheckpointSource(path=weights, with_optimizer=True))
    assert error.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH
    error = await refused(checkpoint=CheckpointSource(path=path + "x"))
    assert error.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    error = await refused(checkpoint=CheckpointSource(path="nonsense"))
    assert error.violations[0].field == "checkpoint.path"
    error = await refused(checkpoint=source, backend="other")
    assert error.violations[0].field == "backend"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "source"),
        ({"base_model": ""}, "base_model"),
        ({"base_model": BASE, "model_seq_id": -1}, "model_seq_id"),
        ({"base_model": BASE, "lora_config": LoraConfig(rank=0)}, "lora_config.rank"),
        ({"base_model": BASE, "lora_config": LoraConfig(rank=65)}, "lora_config.rank"),
        ({"base_model": BASE, "lora_config": LoraConfig(alpha=0)}, "lora_config.alpha"),
        ({"base_model": BASE, "lora_config": LoraConfig(alpha=math.nan)}, "lora_config.alpha"),
        (
            {
                "base_model": BASE,
                "lora_config": LoraConfig(train_mlp=False, train_attn=False, train_unembed=False),
            },
            "lora_config",
        ),
        (
            {
                "base_model": BASE,
                "optimizer_config": OptimizerConfig(settings={"x": {"number": 1}}),
            },
            'optimizer_config.settings["x"]',
        ),
    ],
)
async def test_bad_requests_name_the_field(house: Any, fields: dict[str, Any], field: str) -> None:
    request = CreateModelRequest(session_id=await house.session(), **fields)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.models.create(request)
    assert caught.value.kind is Kind.INVALID
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"base_model": "none"}, ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND),
        ({"base_model": BASE, "backend": "none"}, ErrorReason.ERROR_REASON_BACKEND_NOT_FOUND),
        ({"base_model": "accounts/frozen"}, ErrorReason.ERROR_REASON_UNSUPPORTED),
        (
            {"base_model": BASE, "optimizer_config": OptimizerConfig(type="dimuon")},
            ErrorReason.ERROR_REASON_UNSUPPORTED,
        ),
    ],
)
async def test_what_is_not_there_is_told(
    house: Any, fields: dict[str, Any], reason: ErrorReason.ValueType
) -> None:
    request = CreateModelRequest(session_id=await house.session(), **fields)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.models.create(request)
    assert caught.value.reason == reason


async def test_unknown_session(house: Any) -> None:
    with pytest.raises(GatewayError) as caught:
        await house.gateway.models.create(CreateModelRequest(session_id="x", base_model=BASE))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SESSION_NOT_FOUND


async def test_list_filters_by_session_and_state(house: Any) -> None:
    first, second = await house.session(), await house.session()
    models = [await house.model(first), await house.model(second), await house.model(first)]
    unloading = await house.gateway.models.unload(UnloadModelRequest(model_id=models[0]))
    await house.wait(unloading)

    async def ids(**fields: Any) -> list[str]:
        response = await house.gateway.models.list(ListModelsRequest(**fields))
        return [model.model_id for model in response.models]

    assert await ids() == models[::-1]
    assert await ids(session_id=first) == [models[2], models[0]]
    assert await ids(session_id=first, state=ModelState.MODEL_STATE_READY) == [models[2]]
    assert await ids(state=ModelState.MODEL_STATE_UNLOADED) == [models[0]]


async def test_unloading_what_is_unloaded_is_no_error(house: Any) -> None:
    session_id = await house.session()
    model = await house.model(session_id)
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=session_id))
    await house.gateway._background.join()
    done = await house.wait(await house.gateway.models.unload(UnloadModelRequest(model_id=model)))
    assert done.unload_model.model_id == model
