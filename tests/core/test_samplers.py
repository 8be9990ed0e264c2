from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    CreateSamplerRequest,
    ErrorReason,
    FinishSessionRequest,
    GetSamplerRequest,
    SaveStateRequest,
)

BASE = "accounts/small"


async def test_of_a_base_model_and_of_a_checkpoint(house: Any, make: Any) -> None:
    model = await house.model()
    session_id = model.split(":")[0]
    submit, wait = house.gateway.training.submit, house.wait
    await submit(make.forward_backward(model, 3.0))
    await submit(make.optim_step(model, 2.0))
    path = (await wait(await submit(SaveStateRequest(model_id=model)))).save_state.path
    create = house.gateway.samplers.create
    base = (await create(CreateSamplerRequest(session_id=session_id, base_model="small"))).sampler
    saved = (await create(CreateSamplerRequest(session_id=session_id, model_path=path))).sampler
    assert (base.base_model, base.model_path, base.backend) == (BASE, "", "books")
    assert (saved.base_model, saved.model_path) == (BASE, path)
    assert house.backend.samplers == {base.sampler_id: 0.0, saved.sampler_id: 6.0}
    got = await house.gateway.samplers.get(GetSamplerRequest(sampler_id=saved.sampler_id))
    assert got.sampler == saved


async def test_sampler_seq_id_is_an_identity(house: Any) -> None:
    session_id = await house.session()
    create = house.gateway.samplers.create

    def request(**fields: Any) -> CreateSamplerRequest:
        fields = {"base_model": BASE, "session_id": session_id} | fields
        return CreateSamplerRequest(**fields)

    house.backend.create_gate.clear()
    tasks = [asyncio.create_task(create(request(sampler_seq_id=4))) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    house.backend.create_gate.set()
    ids = {(await task).sampler.sampler_id for task in tasks[1:]}
    assert ids == {f"{session_id}:sample:4"}
    with pytest.raises(GatewayError) as caught:
        await create(request(sampler_seq_id=4, base_model="small"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT
    assert (await create(request())).sampler.sampler_id == f"{session_id}:sample:1"


async def test_a_sampler_that_cannot_be_made_leaves_its_number_free(house: Any) -> None:
    session_id = await house.session()
    request = CreateSamplerRequest(session_id=session_id, sampler_seq_id=0, base_model=BASE)
    house.backend.fail_create = GatewayError(
        Kind.EXHAUSTED, ErrorReason.ERROR_REASON_QUEUE_FULL, "no memory"
    )
    with pytest.raises(GatewayError, match="no memory"):
        await house.gateway.samplers.create(request)
    house.backend.fail_create = None
    response = await house.gateway.samplers.create(request)
    assert response.sampler.sampler_id == f"{session_id}:sample:0"


async def test_a_sampler_made_for_a_session_that_ended_is_closed(house: Any) -> None:
    session_id = await house.session()
    house.backend.create_gate.clear()
    request = CreateSamplerRequest(session_id=session_id, base_model=BASE)
    making = asyncio.create_task(house.gateway.samplers.create(request))
    await asyncio.sleep(0)
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=session_id))
    house.backend.create_gate.set()
    await making
    assert house.backend.events[-1] == f"close {session_id}:sample:0"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "source"),
        ({"base_model": ""}, "base_model"),
        ({"base_model": BASE, "sampler_seq_id": -1}, "sampler_seq_id"),
        ({"model_path": "x"}, "model_path"),
        ({"model_path": "tinker://a/weights/b", "backend": "books"}, "backend"),
    ],
)
async def test_bad_requests_name_the_field(house: Any, fields: dict[str, Any], field: str) -> None:
    request = CreateSamplerRequest(session_id=await house.session(), **fields)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.samplers.create(request)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_checkpoint_that_is_not_there(house: Any) -> None:
    request = CreateSamplerRequest(
        session_id=await house.session(), model_path="tinker://a/weights/b"
    )
    with pytest.raises(GatewayError) as caught:
        await house.gateway.samplers.create(request)
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
