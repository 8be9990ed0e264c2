"""What becomes of work when the gateway is told to stop, over real sockets and real signals."""

from __future__ import annotations

import signal

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tinkergate import v1
from tinkergate.tensors import token_bytes

SAMPLES = 24


def long_sampling() -> v1.StreamSampleRequest:
    """Many long sequences. With 512 tokens to draw from, the end-of-sequence token comes to the
    first of them soon, and to others late or never."""
    request = v1.SampleRequest(
        num_samples=SAMPLES,
        prompt=v1.ModelInput(
            chunks=[v1.Chunk(encoded_text=v1.EncodedTextChunk(tokens=token_bytes([5, 6, 7])))]
        ),
        sampling_params=v1.SamplingParams(max_tokens=300, seed=7, temperature=1.0),
    )
    return v1.StreamSampleRequest(request=request)


async def start_sampling(call):
    """A stream of which the first sequence has arrived, and others are still being drawn."""
    request = long_sampling()
    capabilities = await call.capabilities.GetCapabilities(v1.GetCapabilitiesRequest())
    request.request.base_model = capabilities.default_model
    stream = call.sampling.StreamSample(request)
    arrived = 0
    while not arrived:
        event = await stream.read()
        arrived += event.WhichOneof("event") == "sequence"
    return stream


async def read_to_the_end(stream) -> int:
    """How many more sequences arrive."""
    arrived = 0
    while (event := await stream.read()) is not grpc.aio.EOF:
        arrived += event.WhichOneof("event") == "sequence"
    return arrived


async def until_draining(address: str) -> None:
    """Return once health checks say that the gateway drains."""
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async for answer in watch:
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                watch.cancel()
                return


def details(error: grpc.aio.AioRpcError) -> dict[str, object]:
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    found = {}
    for packed in status.details:
        for kind in (ErrorInfo, RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind.FromString(packed.value)
    return found


async def test_running_work_ends_and_new_work_is_turned_away(
    start_gateway, connected, create_model, training_step
):
    gateway = start_gateway("--grace", "60")
    async with connected(gateway.address) as call:
        model_id = await create_model(call)
        early = await call.training.ForwardBackward(training_step(model_id, 2))
        waiting = call.operations.WaitOperation(v1.WaitOperationRequest(name=early.name))
        stream = await start_sampling(call)
        gateway.signal(signal.SIGTERM)
        await until_draining(gateway.address)
        # What it waits for cannot arrive any more, so there is no point in the grace for it.
        assert (await waiting).operation.state == v1.OperationState.OPERATION_STATE_FAILED
        for refused in (
            call.training.ForwardBackward(training_step(model_id, None)),
            call.sessions.CreateSession(v1.CreateSessionRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await refused
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            told = details(caught.value)
            assert told["ErrorInfo"].reason == "SHUTTING_DOWN"
            assert told["RetryInfo"].retry_delay.ToNanoseconds() > 0
        assert 1 + await read_to_the_end(stream) == SAMPLES
    assert gateway.wait() == 0


async def test_what_the_grace_does_not_suffice_for_is_ended_and_told(
    start_gateway, connected, create_model, training_step
):
    """A sampling that is under way, and an operation that can never run because the one before it
    is missing: both callers learn that it was the gateway's end."""
    gateway = start_gateway("--grace", "0")
    async with connected(gateway.address) as call:
        model_id = await create_model(call)
        second = await call.training.ForwardBackward(training_step(model_id, 2))
        waiting = call.operations.WaitOperation(v1.WaitOperationRequest(name=second.name))
        stream = await start_sampling(call)
        gateway.signal(signal.SIGTERM)
        operation = (await waiting).operation
        assert operation.state == v1.OperationState.OPERATION_STATE_FAILED
        assert operation.error.reason == v1.ErrorReason.ERROR_REASON_SHUTTING_DOWN
        assert operation.error.retryable
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_the_end(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(caught.value)["ErrorInfo"].reason == "SHUTTING_DOWN"
    assert gateway.wait() == 0


async def test_a_second_signal_stops_at_once(start_gateway, connected):
    gateway = start_gateway("--grace", "60")
    async with connected(gateway.address) as call:
        stream = await start_sampling(call)
        gateway.signal(signal.SIGTERM)
        await until_draining(gateway.address)
        gateway.signal(signal.SIGINT)
        assert gateway.wait() == 128 + signal.SIGINT
        with pytest.raises(grpc.aio.AioRpcError):
            await read_to_the_end(stream)
    again = start_gateway("--data-dir", str(gateway.data_dir), engine=False)
    assert again.stop() == 0
