"""The order of a model's operations, seen from the door."""

from __future__ import annotations

from typing import Any

import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    CancelOperationRequest,
    ErrorReason,
    ForwardBackwardRequest,
    GetModelRequest,
    LoadStateRequest,
    OperationKind,
    OperationState,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    UnloadModelRequest,
)


async def test_out_of_order_with_duplicates_and_a_conflict_is_the_canon(
    house: Any, make: Any
) -> None:
    model = await house.model()
    requests = {
        1: make.forward_backward(model, 1.0, 1),
        2: make.forward_backward(model, 2.0, 2),
        3: make.optim_step(model, 10.0, 3),
        4: make.forward_backward(model, 4.0, 4),
    }
    operations = {}
    for seq_id in (2, 3, 1, 4):
        copy = type(requests[seq_id]).FromString(requests[seq_id].SerializeToString())
        operations[seq_id] = await house.gateway.training.submit(copy)
    for seq_id, request in requests.items():
        repeat = await house.gateway.training.submit(request)
        assert repeat.name == operations[seq_id].name
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(model, 99.0, 2))
    assert caught.value.kind is Kind.CONFLICT
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT

    done = {seq_id: await house.wait(op) for seq_id, op in operations.items()}
    assert [seq_id for _, _, seq_id in house.backend.journal] == [1, 2, 3, 4]
    assert done[3].optim_step.metrics["value:mean"] == 30.0
    assert house.backend.accounts[model].gradient == 4.0
    assert done[4].forward_backward.metrics["loss:sum"] == 4.0
    assert operations[2].state == OperationState.OPERATION_STATE_PARKED
    assert operations[1].state == OperationState.OPERATION_STATE_QUEUED
    got = await house.gateway.models.get(GetModelRequest(model_id=model))
    assert got.model.next_seq_id == 5
    assert got.model.optimizer_steps == 1


async def test_a_refused_request_takes_no_place(house: Any, make: Any) -> None:
    model = await house.model()
    bad = make.forward_backward(model, float("nan"), 1)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(bad)
    assert [v.field for v in caught.value.violations] == ['data[0].loss_fn_inputs["weights"]']
    done = await house.wait(
        await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    )
    assert done.state == OperationState.OPERATION_STATE_SUCCEEDED


async def test_refused_in_its_place_it_fails_there_and_what_follows_goes_on(
    house: Any, make: Any
) -> None:
    model_id = await house.model()
    training = house.gateway.training
    bad = ForwardBackwardRequest(model_id=model_id, seq_id=2, loss_fn="no such loss")
    with pytest.raises(GatewayError) as refused:
        await training.submit(bad)
    later = await training.submit(make.optim_step(model_id, seq_id=3))
    failing = await training.refuse(bad, refused.value)
    assert (await training.refuse(bad, refused.value)).name == failing.name
    assert failing.state == OperationState.OPERATION_STATE_PARKED
    await training.submit(make.forward_backward(model_id, 2.0, 1))
    done = await house.wait(failing)
    assert done.state == OperationState.OPERATION_STATE_FAILED
    assert done.kind == OperationKind.OPERATION_KIND_FORWARD_BACKWARD
    assert "no such loss" in done.error.message
    assert (await house.wait(later)).optim_step.metrics["value:mean"] == 2.0
    with pytest.raises(GatewayError) as conflict:
        await training.submit(make.forward_backward(model_id, 2.0, 2))
    assert conflict.value.kind is Kind.CONFLICT


async def test_requests_without_seq_id_run_as_they_arrive(house: Any, make: Any) -> None:
    model = await house.model()
    house.backend.gate.clear()
    operations = [
        await house.gateway.training.submit(request)
        for request in (
            make.forward_backward(model, 3.0),
            make.optim_step(model, 1.0),
            make.forward_backward(model, 5.0),
            make.optim_step(model, 1.0),
        )
    ]
    house.backend.gate.set()
    done = [await house.wait(operation) for operation in operations]
    assert [done[1].optim_step.metrics["value:mean"], done[3].optim_step.metrics["value:mean"]] == [
        3.0,
        8.0,
    ]


async def test_request_id_is_an_identity(house: Any, make: Any) -> None:
    model = await house.model()
    first = await house.gateway.training.submit(make.forward_backward(model, 1.0, request_id="r1"))
    again = await house.gateway.training.submit(make.forward_backward(model, 1.0, request_id="r1"))
    other = await house.gateway.training.submit(make.forward_backward(model, 1.0, request_id="r2"))
    assert first.name == again.name != other.name
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(model, 2.0, request_id="r1"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT
    await house.wait(other)
    assert house.backend.accounts[model].gradient == 2.0


async def test_with_seq_id_the_request_id_is_no_part_of_the_request(house: Any, make: Any) -> None:
    model = await house.model()
    first = await house.gateway.training.submit(
        make.forward_backward(model, 1.0, 1, request_id="try-1")
    )
    again = await house.gateway.training.submit(
        make.forward_backward(model, 1.0, 1, request_id="try-2")
    )
    assert first.name == again.name


async def test_a_failed_turn_makes_way(house: Any, make: Any) -> None:
    model = await house.model()
    house.backend.fail_submit[1] = GatewayError(
        Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE, "no"
    )
    house.backend.fail_run[2] = ZeroDivisionError("secret")
    operations = [
        await house.gateway.training.submit(make.forward_backward(model, 1.0, seq_id))
        for seq_id in (3, 2, 1)
    ]
    third, second, first = [await house.wait(operation) for operation in operations]
    assert first.error.reason == ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE
    assert first.error.retryable
    assert second.error.reason == ErrorReason.ERROR_REASON_INTERNAL
    assert "secret" not in second.error.message
    assert third.state == OperationState.OPERATION_STATE_SUCCEEDED
    assert house.backend.accounts[model].gradient == 1.0


async def test_pipelined_as_deep_as_the_backend_allows(open_house: Any, make: Any) -> None:
    house = await open_house(pipeline_depth=3)
    model = await house.model()
    house.backend.gate.clear()
    operations = [
        await house.gateway.training.submit(make.forward_backward(model, 1.0, seq_id))
        for seq_id in range(1, 11)
    ]
    await house.until(lambda: len(house.backend.submitted) == 3)
    house.backend.gate.set()
    for operation in operations:
        await house.wait(operation)
    assert house.backend.most_in_flight == 3


async def test_a_full_queue_refuses_and_takes_up_again(open_house: Any, make: Any) -> None:
    house = await open_house(pipeline_depth=1, max_queued_operations=2, queue_retry_delay=0.5)
    model = await house.model()
    house.backend.gate.clear()
    first = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    await house.until(lambda: len(house.backend.submitted) == 1)
    second = await house.gateway.training.submit(make.forward_backward(model, 1.0, 2))
    await house.gateway.training.submit(make.forward_backward(model, 1.0, 3))
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(model, 1.0, 4))
    assert caught.value.kind is Kind.EXHAUSTED
    assert caught.value.reason == ErrorReason.ERROR_REASON_QUEUE_FULL
    assert caught.value.retry_after == 0.5
    house.backend.gate.set()
    await house.wait(first)
    await house.wait(second)
    fourth = await house.gateway.training.submit(make.forward_backward(model, 1.0, 4))
    await house.wait(fourth)
    assert house.backend.accounts[model].gradient == 4.0


async def test_bytes_that_wait_are_bounded(open_house: Any, make: Any) -> None:
    size = make.forward_backward("s-0000000000000000:train:0", 1.0, 1).ByteSize()
    house = await open_house(max_queued_bytes=2 * size, max_message_bytes=0)
    model = await house.model()
    house.backend.gate.clear()
    first = await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    await house.gateway.training.submit(make.forward_backward(model, 1.0, 2))
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(model, 1.0, 3))
    assert caught.value.reason == ErrorReason.ERROR_REASON_QUEUE_FULL
    house.backend.gate.set()
    await house.wait(first)
    await house.gateway.training.submit(make.forward_backward(model, 1.0, 3))


async def test_a_missing_seq_id_fails_what_waits_for_it(open_house: Any, make: Any) -> None:
    house = await open_house(gap_timeout=0.05)
    model = await house.model()
    parked = [
        await house.gateway.training.submit(make.forward_backward(model, float(seq_id), seq_id))
        for seq_id in (2, 4)
    ]
    for operation in parked:
        done = await house.wait(operation)
        assert done.error.reason == ErrorReason.ERROR_REASON_SEQUENCE_GAP
        assert "seq_id 1 did not arrive" in done.error.message
        assert done.error.metadata["next_seq_id"] == "5"
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(make.forward_backward(model, 1.0, 1))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SEQUENCE_PASSED
    done = await house.wait(
        await house.gateway.training.submit(make.forward_backward(model, 7.0, 5))
    )
    assert done.state == OperationState.OPERATION_STATE_SUCCEEDED
    assert house.backend.accounts[model].gradient == 7.0


async def test_cancel_parked_queued_and_running(open_house: Any, make: Any) -> None:
    house = await open_house(pipeline_depth=2)
    model = await house.model()
    submit, cancel = house.gateway.training.submit, house.gateway.operations.cancel

    async def cancelled(operation: Any) -> Any:
        return (await cancel(CancelOperationRequest(name=operation.name))).operation

    house.backend.gate.clear()
    ops = {n: await submit(make.forward_backward(model, float(n), n)) for n in (1, 2, 3, 5, 6)}
    await house.until(lambda: len(house.backend.submitted) == 2)
    in_flight = await cancelled(ops[2])
    queued = await cancelled(ops[3])
    parked = await cancelled(ops[5])
    for operation in (in_flight, queued, parked):
        assert operation.state == OperationState.OPERATION_STATE_CANCELLED
        assert operation.error.reason == ErrorReason.ERROR_REASON_CANCELLED
    ops[4] = await submit(make.forward_backward(model, 4.0, 4))
    house.backend.gate.set()
    for n in (1, 4, 6):
        assert (await house.wait(ops[n])).state == OperationState.OPERATION_STATE_SUCCEEDED
    assert [seq_id for _, _, seq_id in house.backend.journal] == [1, 4, 6]
    too_late = await cancelled(ops[6])
    assert too_late.state == OperationState.OPERATION_STATE_SUCCEEDED
    repeat = await submit(make.forward_backward(model, 5.0, 5))
    assert repeat.state == OperationState.OPERATION_STATE_CANCELLED


async def test_saves_and_loads(house: Any, make: Any) -> None:
    model = await house.model()
    submit, wait = house.gateway.training.submit, house.wait
    await submit(make.forward_backward(model, 2.0))
    await submit(make.optim_step(model, 1.0))
    saved = await wait(await submit(SaveStateRequest(model_id=model)))
    assert saved.save_state.path == f"tinker://{model}/weights/step-1"
    twice = await wait(await submit(SaveStateRequest(model_id=model)))
    assert twice.save_state.path == f"tinker://{model}/weights/step-1-2"
    await submit(make.forward_backward(model, 5.0))
    await submit(make.optim_step(model, 1.0))
    loaded = await wait(
        await submit(
            LoadStateRequest(model_id=model, path=saved.save_state.path, with_optimizer=True)
        )
    )
    assert loaded.load_state.path == saved.save_state.path
    assert house.backend.accounts[model].value == 2.0
    got = (await house.gateway.models.get(GetModelRequest(model_id=model))).model
    assert got.optimizer_steps == 1
    assert got.last_checkpoint == twice.save_state.path


async def test_a_name_that_is_taken_fails_the_operation_not_the_call(house: Any) -> None:
    model = await house.model()
    submit, wait = house.gateway.training.submit, house.wait
    first = await submit(SaveStateRequest(model_id=model, seq_id=1, name="a"))
    second = await submit(SaveStateRequest(model_id=model, seq_id=2, name="a"))
    third = await submit(SaveStateRequest(model_id=model, seq_id=3, name="a", overwrite=True))
    retry = await submit(SaveStateRequest(model_id=model, seq_id=1, name="a"))
    assert retry.name == first.name
    assert (await wait(first)).save_state.path == f"tinker://{model}/weights/a"
    failed = await wait(second)
    assert failed.error.reason == ErrorReason.ERROR_REASON_CHECKPOINT_EXISTS
    assert (await wait(third)).save_state.path == f"tinker://{model}/weights/a"


async def test_a_nameless_sampler_takes_the_sessions_next_number(house: Any, make: Any) -> None:
    model = await house.model()
    session = model.split(":")[0]
    submit, wait = house.gateway.training.submit, house.wait
    first = await wait(await submit(SaveWeightsForSamplerRequest(model_id=model)))
    assert first.save_weights_for_sampler.sampler_id == f"{session}:sample:0"
    fifth = await wait(await submit(SaveWeightsForSamplerRequest(model_id=model, sampler_seq_id=5)))
    assert fifth.save_weights_for_sampler.sampler_id == f"{session}:sample:5"
    with pytest.raises(GatewayError) as caught:
        await submit(SaveWeightsForSamplerRequest(model_id=model, sampler_seq_id=5, seq_id=1))
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT
    named = await wait(await submit(SaveWeightsForSamplerRequest(model_id=model, name="x")))
    assert named.save_weights_for_sampler.path == f"tinker://{model}/sampler_weights/x"


async def test_a_sampler_number_whose_operation_failed_is_free_again(house: Any) -> None:
    model = await house.model()
    house.backend.fail_run[1] = RuntimeError("boom")
    submit, wait = house.gateway.training.submit, house.wait
    failed = await submit(SaveWeightsForSamplerRequest(model_id=model, sampler_seq_id=0, seq_id=1))
    assert (await wait(failed)).HasField("error")
    again = await submit(SaveWeightsForSamplerRequest(model_id=model, sampler_seq_id=0, seq_id=2))
    assert (await wait(again)).save_weights_for_sampler.sampler_id.endswith(":sample:0")


async def test_loading_what_is_not_there_fails_the_operation(house: Any) -> None:
    model = await house.model()
    path = f"tinker://{model}/weights/none"
    done = await house.wait(
        await house.gateway.training.submit(LoadStateRequest(model_id=model, path=path))
    )
    assert done.error.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(LoadStateRequest(model_id=model, path="file:///etc"))
    assert caught.value.violations[0].field == "path"


async def test_unload_comes_after_what_was_submitted(house: Any, make: Any) -> None:
    model = await house.model()
    house.backend.gate.clear()
    submit = house.gateway.training.submit
    first = await submit(make.forward_backward(model, 1.0, 1))
    parked = await submit(make.forward_backward(model, 3.0, 3))
    unload = await house.gateway.models.unload(UnloadModelRequest(model_id=model))
    again = await house.gateway.models.unload(UnloadModelRequest(model_id=model))
    assert unload.name == again.name
    with pytest.raises(GatewayError) as caught:
        await submit(make.forward_backward(model, 2.0, 2))
    assert caught.value.reason == ErrorReason.ERROR_REASON_MODEL_NOT_READY
    house.backend.gate.set()
    assert (await house.wait(parked)).error.reason == ErrorReason.ERROR_REASON_SEQUENCE_GAP
    assert (await house.wait(first)).state == OperationState.OPERATION_STATE_SUCCEEDED
    done = await house.wait(unload)
    assert done.unload_model.model_id == model
    assert model not in house.backend.accounts
    repeat = await submit(make.forward_backward(model, 1.0, 1))
    assert repeat.name == first.name
    with pytest.raises(GatewayError) as caught:
        await submit(make.forward_backward(model, 9.0, 9))
    assert caught.value.reason == ErrorReason.ERROR_REASON_MODEL_NOT_READY


async def test_unknown_model(house: Any) -> None:
    with pytest.raises(GatewayError) as caught:
        await house.gateway.training.submit(ForwardBackwardRequest(model_id="none"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_MODEL_NOT_FOUND
