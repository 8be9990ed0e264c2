"""A broken connection costs nothing, over real sockets."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tinkergate import v1
from tinkergate.tensors import arrays_from_batched

SUCCEEDED = v1.OperationState.OPERATION_STATE_SUCCEEDED
PARKED = v1.OperationState.OPERATION_STATE_PARKED


async def test_a_connection_cut_in_mid_wait_loses_no_result(
    gateway_process, cuttable_wire, connected, create_model, training_step, until_done
):
    """The wait hangs on seq_id 2, which cannot run before 1. Then the network fails, 1 arrives on
    another connection, and the result of 2 is there for whoever asks."""
    async with cuttable_wire(gateway_process.address) as wire, connected(wire.address) as call:
        model_id = await create_model(call)
        second = await call.training.ForwardBackward(training_step(model_id, 2))
        assert second.state == PARKED
        request = v1.WaitOperationRequest(name=second.name)
        sent = wire.bytes_sent
        waiting = asyncio.ensure_future(call.operations.WaitOperation(request))
        await wire.until_sent(sent + len(second.name))
        assert not waiting.done()
        await wire.cut()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with connected(gateway_process.address) as call:
        answer = await call.operations.GetOperation(v1.GetOperationRequest(name=second.name))
        assert answer.operation.state == PARKED
        first = await call.training.ForwardBackward(training_step(model_id, 1))
        results = [await until_done(call, name) for name in (first.name, second.name)]
    assert [result.state for result in results] == [SUCCEEDED, SUCCEEDED]
    # The same request twice without a step between: the same numbers.
    logprobs = [
        arrays_from_batched(result.forward_backward.loss_fn_outputs[0].fields["logprobs"])
        for result in results
    ]
    assert logprobs[0][0].shape == (4,)
    assert (logprobs[0][0] == logprobs[1][0]).all()


async def test_a_submit_whose_answer_was_lost_is_repeated_without_harm(
    gateway_process, cuttable_wire, connected, create_model, training_step, until_done
):
    async with connected(gateway_process.address) as call:
        model_id = await create_model(call)
        async with cuttable_wire(gateway_process.address) as wire, connected(wire.address) as lost:
            sending = asyncio.ensure_future(
                lost.training.ForwardBackward(training_step(model_id, 1))
            )
            await wire.until_sent(1)
            await wire.cut()
            await asyncio.wait([sending])
            sending.exception()
        again = await call.training.ForwardBackward(training_step(model_id, 1))
        more = await call.training.ForwardBackward(training_step(model_id, 1))
        assert again.name == more.name
        assert (await until_done(call, again.name)).state == SUCCEEDED
        known = await call.operations.ListOperations(v1.ListOperationsRequest(model_id=model_id))
        training = [
            operation.name
            for operation in known.operations
            if operation.kind == v1.OperationKind.OPERATION_KIND_FORWARD_BACKWARD
        ]
        assert training == [again.name]


async def test_a_caller_who_leaves_a_wait_cancels_nothing(
    gateway_process, connected, create_model, training_step, until_done
):
    async with connected(gateway_process.address) as call:
        model_id = await create_model(call)
        second = await call.training.ForwardBackward(training_step(model_id, 2))
        waiting = call.operations.WaitOperation(v1.WaitOperationRequest(name=second.name))
        await asyncio.sleep(0)
        waiting.cancel()
        await call.training.ForwardBackward(training_step(model_id, 1))
        assert (await until_done(call, second.name)).state == SUCCEEDED


async def test_a_wait_is_answered_before_the_callers_deadline(
    gateway_process, connected, create_model, training_step
):
    async with connected(gateway_process.address) as call:
        model_id = await create_model(call)
        second = await call.training.ForwardBackward(training_step(model_id, 2))
        request = v1.WaitOperationRequest(name=second.name)
        answer = await call.operations.WaitOperation(request, timeout=2)
        assert answer.operation.state == PARKED


async def test_a_refused_request_leaves_the_model_alive(
    gateway_process, connected, create_model, training_step, until_done
):
    """Its place in the order stays free for a better one."""
    async with connected(gateway_process.address) as call:
        model_id = await create_model(call)
        broken = [
            training_step(model_id, 1, loss_fn="no_such_loss"),
            training_step(model_id, 1),
            training_step("no:train:0", 1),
        ]
        del broken[1].data[0].loss_fn_inputs["target_tokens"]
        codes = []
        for request in broken:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.training.ForwardBackward(request)
            codes.append(caught.value.code())
        assert codes == [
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
        ]
        good = await call.training.ForwardBackward(training_step(model_id, 1))
        assert (await until_done(call, good.name)).state == SUCCEEDED
