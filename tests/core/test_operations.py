from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinkergate.errors import GatewayError
from tinkergate.v1 import (
    ErrorReason,
    GetOperationRequest,
    ListOperationsRequest,
    OperationKind,
    OperationState,
    WaitOperationRequest,
)


async def test_times_and_states(house: Any, make: Any) -> None:
    model = await house.model()
    house.backend.gate.clear()
    house.clock.seconds += 1
    operation = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    assert operation.state == OperationState.OPERATION_STATE_QUEUED
    assert operation.kind == OperationKind.OPERATION_KIND_FORWARD_BACKWARD
    assert (operation.model_id, operation.seq_id) == (model, 1)
    assert operation.create_time.seconds == 1_700_000_001
    assert not operation.HasField("start_time")
    house.clock.seconds += 1
    house.backend.gate.set()
    done = await house.wait(operation)
    assert (done.start_time.seconds, done.end_time.seconds) == (1_700_000_002,) * 2
    got = await house.gateway.operations.get(GetOperationRequest(name=operation.name))
    assert got.operation == done


async def test_any_number_may_wait(house: Any, make: Any) -> None:
    model = await house.model()
    house.backend.gate.clear()
    operation = await house.gateway.training.submit(make.forward_backward(model, 1.0))
    waiting = [asyncio.create_task(house.wait(operation)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    house.backend.gate.set()
    results = await asyncio.gather(*waiting[1:])
    assert all(r.state == OperationState.OPERATION_STATE_SUCCEEDED for r in results)


@pytest.mark.parametrize("limits", [{"timeout": 0.01}, {"time_limit": 0.02}, {"timeout": 0.0}])
async def test_running_out_of_time_is_no_error(
    house: Any, make: Any, limits: dict[str, float]
) -> None:
    model = await house.model()
    house.backend.gate.clear()
    operation = await house.gateway.training.submit(make.forward_backward(model, 1.0))
    request = WaitOperationRequest(name=operation.name)
    if "timeout" in limits:
        request.timeout.FromNanoseconds(round(limits["timeout"] * 1e9))
    response = await house.gateway.operations.wait(request, limits.get("time_limit"))
    assert response.operation.state == OperationState.OPERATION_STATE_QUEUED
    assert not response.operation.WhichOneof("result")


async def test_a_negative_timeout_is_refused(house: Any) -> None:
    request = WaitOperationRequest(name="x")
    request.timeout.seconds = -1
    with pytest.raises(GatewayError) as caught:
        await house.gateway.operations.wait(request)
    assert caught.value.violations[0].field == "timeout"


async def test_unknown_operation(house: Any) -> None:
    with pytest.raises(GatewayError) as caught:
        await house.gateway.operations.get(GetOperationRequest(name="models/x/operations/1"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND


async def test_the_oldest_results_go_first_and_the_newest_stays(open_house: Any, make: Any) -> None:
    house = await open_house(result_byte_budget=1)
    model = await house.model()
    operations = [
        await house.gateway.training.submit(make.forward_backward(model, 1.0, n)) for n in (1, 2)
    ]
    first, second = [await house.wait(operation) for operation in operations]
    assert first.HasField("forward_backward")
    assert second.HasField("forward_backward")
    again = await house.wait(operations[0])
    assert again.state == OperationState.OPERATION_STATE_SUCCEEDED
    assert again.result_expired
    assert again.WhichOneof("result") is None
    assert not (await house.wait(operations[1])).result_expired


async def test_results_expire_and_operations_are_forgotten(open_house: Any, make: Any) -> None:
    house = await open_house(
        result_retention=100, operation_retention=200, session_expires_after=10_000
    )
    model = await house.model()
    operation = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    await house.wait(operation)
    house.clock.seconds += 101
    await house.gateway.reap()
    assert (await house.wait(operation)).result_expired
    house.clock.seconds += 100
    await house.gateway.reap()
    with pytest.raises(GatewayError) as caught:
        await house.wait(operation)
    assert caught.value.reason == ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SEQUENCE_PASSED


async def test_errors_outlive_results(open_house: Any, make: Any) -> None:
    house = await open_house(result_byte_budget=1, result_retention=1)
    house.backend.fail_run[1] = ValueError("x")
    model = await house.model()
    operation = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    error = (await house.wait(operation)).error
    house.clock.seconds += 2
    await house.gateway.reap()
    later = await house.wait(operation)
    assert later.error == error
    assert not later.result_expired


async def test_not_more_than_so_many_are_remembered(open_house: Any, make: Any) -> None:
    house = await open_house(max_operations=3)
    model = await house.model()
    for n in range(1, 6):
        await house.wait(await house.gateway.training.submit(make.forward_backward(model, 1.0, n)))
    await house.gateway.reap()
    listed = await house.gateway.operations.list(ListOperationsRequest())
    assert [operation.seq_id for operation in listed.operations] == [5, 4, 3]


async def test_list_is_without_results_newest_first_and_filtered(house: Any, make: Any) -> None:
    model, other = await house.model(), await house.model()
    house.backend.fail_run[2] = ValueError("x")
    for n in (1, 2, 3):
        await house.wait(await house.gateway.training.submit(make.forward_backward(model, 1.0, n)))
    await house.gateway.training.submit(make.forward_backward(model, 1.0, 5))

    async def listed(**fields: Any) -> list[Any]:
        response = await house.gateway.operations.list(ListOperationsRequest(**fields))
        return list(response.operations)

    mine = await listed(model_id=model)
    assert [operation.seq_id for operation in mine] == [5, 3, 2, 1, 0]
    assert [operation.WhichOneof("result") for operation in mine] == [
        None,
        None,
        "error",
        None,
        None,
    ]
    failed = await listed(state=OperationState.OPERATION_STATE_FAILED)
    assert [operation.seq_id for operation in failed] == [2]
    assert [operation.model_id for operation in await listed(model_id=other)] == [other]
    parked = await listed(state=OperationState.OPERATION_STATE_PARKED, page_size=1)
    assert [operation.seq_id for operation in parked] == [5]


async def test_a_large_result_is_not_copied_for_each_who_asks(house: Any, make: Any) -> None:
    model = await house.model()
    operation = await house.gateway.training.submit(make.forward_backward(model, 1.0))
    await house.wait(operation)
    request = WaitOperationRequest(name=operation.name)
    first = await house.gateway.operations.wait(request)
    assert await house.gateway.operations.wait(request) is first
