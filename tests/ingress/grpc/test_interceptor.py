"""What surrounds every call, over a real socket."""

from __future__ import annotations

import asyncio
import json
import logging

import grpc
import pytest

from tinkergate.errors import ErrorReason, GatewayError, Kind, Violation, invalid
from tinkergate.telemetry import JsonFormatter
from tinkergate.v1 import (
    CheckpointServiceStub,
    GetSessionRequest,
    GetSessionResponse,
    ImportCheckpointRequest,
    SamplingServiceStub,
    SessionServiceStub,
    StreamSampleRequest,
    StreamSampleResponse,
)

SECRET = "the model's weights are in /srv/secret"


class LogLines(logging.Handler):
    """The request log as the JSON lines that would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(self.format(record))

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text]


@pytest.fixture
def request_log():
    logger = logging.getLogger("tinkergate.request")
    handler = LogLines()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


def failing(error: BaseException):
    async def fail(request):
        raise error

    return fail


async def failure_of(probe, **call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await SessionServiceStub(probe.channel).GetSession(GetSessionRequest(), **call)
    return caught.value


async def test_a_gateway_error_arrives_with_all_its_details(probe, details_of):
    error = GatewayError(
        Kind.EXHAUSTED,
        ErrorReason.ERROR_REASON_QUEUE_FULL,
        "the queue is full",
        backend="local",
        retry_after=1.25,
        metadata={"waiting": "1024"},
    )
    async with probe() as p:
        p.behaviour.unary = failing(error)
        caught = await failure_of(p, metadata=[("x-request-id", "mine")])
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.details() == "the queue is full"
    details = details_of(caught)
    assert details.info.reason == "QUEUE_FULL"
    assert details.info.domain == "tinkergate"
    assert dict(details.info.metadata) == {
        "backend": "local",
        "waiting": "1024",
        "request_id": "mine",
    }
    assert details.retry.retry_delay.ToTimedelta().total_seconds() == 1.25
    assert details.bad_request is None


async def test_broken_rules_arrive_field_by_field(probe, details_of):
    error = invalid(
        [Violation('data[3].loss_fn_inputs["weights"]', "NaN at 2"), Violation("b", "c")]
    )
    async with probe() as p:
        p.behaviour.unary = failing(error)
        caught = await failure_of(p)
    assert caught.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = [(v.field, v.description) for v in details_of(caught).bad_request.field_violations]
    assert told == [('data[3].loss_fn_inputs["weights"]', "NaN at 2"), ("b", "c")]


async def test_huge_failures_arrive_as_what_they_are(probe, details_of):
    """gRPC turns trailers over 16 KiB into RESOURCE_EXHAUSTED."""
    error = invalid([Violation(f"data[{i}].text", "é€😀" * 3000) for i in range(20)])
    error.metadata = {f"fact {i}": "ü" * 5000 for i in range(20)}
    async with probe() as p:
        p.behaviour.unary = failing(error)
        caught = await failure_of(p)
    assert caught.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.details().startswith("data[0].text: é€😀")
    assert details_of(caught).bad_request.field_violations[0].field == "data[0].text"


async def test_a_fault_of_ours_shows_an_id_and_nothing_else(probe, details_of, request_log):
    async with probe() as p:
        p.behaviour.unary = failing(ValueError(SECRET))
        caught = await failure_of(p)
    assert caught.code() is grpc.StatusCode.INTERNAL
    details = details_of(caught)
    assert details.info.reason == "INTERNAL"
    error_id = details.info.metadata["error_id"]
    assert error_id in caught.details()
    assert "secret" not in str(caught.trailing_metadata())
    assert "ValueError" not in str(caught.trailing_metadata())
    (line,) = request_log.lines
    assert line["error_id"] == error_id
    assert line["level"] == "error"
    assert SECRET in line["traceback"]


async def test_failures_in_the_midst_of_a_stream(probe, details_of, request_log):
    async def two_then(error):
        yield StreamSampleResponse()
        yield StreamSampleResponse()
        raise error

    async with probe() as p:
        stub = SamplingServiceStub(p.channel)
        for error, code in [
            (invalid([Violation("request.prompt", "empty")]), grpc.StatusCode.INVALID_ARGUMENT),
            (RuntimeError(SECRET), grpc.StatusCode.INTERNAL),
        ]:
            p.behaviour.stream = lambda request, error=error: two_then(error)
            answers = stub.StreamSample(StreamSampleRequest())
            assert await answers.read() == StreamSampleResponse()
            assert await answers.read() == StreamSampleResponse()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answers.read()
            assert caught.value.code() is code
            assert details_of(caught.value).info.domain == "tinkergate"
            assert SECRET not in caught.value.details()
    assert [line["code"] for line in request_log.lines] == ["INVALID_ARGUMENT", "INTERNAL"]


async def test_a_caller_that_hangs_up_cancels_the_handler(probe, request_log):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def for_ever(request):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with probe() as p:
        p.behaviour.unary = for_ever
        call = SessionServiceStub(p.channel).GetSession(GetSessionRequest())
        waiting = asyncio.ensure_future(call)
        await begun.wait()
        waiting.cancel()
        await cancelled.wait()
    (line,) = request_log.lines
    assert line["code"] == "CANCELLED"


async def test_a_call_without_a_deadline_gets_the_default(probe, details_of):
    async def for_ever(request):
        await asyncio.Event().wait()

    async with probe(default_deadline=0.05) as p:
        p.behaviour.unary = for_ever
        caught = await failure_of(p)
    assert caught.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details_of(caught).info.reason == "DEADLINE_EXCEEDED"
    assert "0.05 s" in caught.details()


async def test_a_deadline_of_the_callers_own_goes_before_the_default(probe):
    async def later(request):
        await asyncio.sleep(0.2)
        return GetSessionResponse()

    async with probe(default_deadline=0.05) as p:
        p.behaviour.unary = later
        await SessionServiceStub(p.channel).GetSession(GetSessionRequest(), timeout=30)


async def test_a_handlers_own_timeout_is_a_fault_not_the_default_deadline(probe):
    async with probe(default_deadline=60) as p:
        p.behaviour.unary = failing(TimeoutError())
        caught = await failure_of(p)
    assert caught.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer right ")],
        [("authorization", "right")],
        [("authorization", "Basic right")],
        [("x-api-key", "wrong")],
        [("x-api-key", "righ")],
        [("x-api-key", "")],
        [("x-api-key", "right"), ("x-api-key", "wrong")],
        [("authorization", "Bearer right"), ("x-api-key", "wrong")],
        [("authorization", "Bearer wrong"), ("x-api-key", "right")],
    ],
)
async def test_a_wrong_key_is_never_accepted(probe, details_of, request_log, metadata):
    async with probe(keys=["right", "other"]) as p:
        caught = await failure_of(p, metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            async for _ in SamplingServiceStub(p.channel).StreamSample(
                StreamSampleRequest(), metadata=metadata
            ):
                pass
        with pytest.raises(grpc.aio.AioRpcError) as imported:
            await CheckpointServiceStub(p.channel).ImportCheckpoint(
                iter([ImportCheckpointRequest()]), metadata=metadata
            )
        for error in (caught, streamed.value, imported.value):
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert details_of(error).info.reason == "UNAUTHENTICATED"
        assert p.behaviour.calls == 0
        assert p.behaviour.imported == []
    assert "right" not in "".join(request_log.text)
    assert "wrong" not in "".join(request_log.text)


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Bearer right")],
        [("authorization", "bearer other")],
        [("x-api-key", "other")],
        [("authorization", "Bearer right"), ("x-api-key", "right")],
    ],
)
async def test_a_right_key_is_let_in(probe, metadata):
    async with probe(keys=["right", "other"]) as p:
        await SessionServiceStub(p.channel).GetSession(GetSessionRequest(), metadata=metadata)
        assert p.behaviour.calls == 1


async def test_a_caller_without_a_key_costs_no_decoding(probe):
    async with probe(keys=["right"]) as p:
        raw = p.channel.unary_unary("/tinkergate.v1.SessionService/GetSession")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_bytes_that_are_no_message_are_told_as_such(probe, details_of):
    async with probe() as p:
        raw = p.channel.unary_unary("/tinkergate.v1.SessionService/GetSession")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(b"\xff\xff\xff")
        assert p.behaviour.calls == 0
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "do not decode" in caught.value.details()
    assert details_of(caught.value).info.reason == "INVALID_FIELD"


async def test_an_answer_over_the_limit_is_told_with_both_sizes(probe, details_of):
    async def large(request):
        response = GetSessionResponse()
        response.session.display_name = "x" * 5000
        return response

    async with probe(max_message_bytes=1000) as p:
        p.behaviour.unary = large
        caught = await failure_of(p)
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = details_of(caught)
    assert details.info.reason == "TOO_LARGE"
    assert details.info.metadata["limit"] == "1000"
    assert int(details.info.metadata["size"]) > 5000


async def test_a_line_of_the_log_tells_method_code_time_and_sizes(probe, request_log):
    async def answer(request):
        response = GetSessionResponse()
        response.session.display_name = request.session_id
        return response

    request = GetSessionRequest(session_id="a name that is no business of the log")
    async with probe(keys=["right"]) as p:
        p.behaviour.unary = answer
        response = await SessionServiceStub(p.channel).GetSession(
            request, metadata=[("x-api-key", "right"), ("x-request-id", "abc")]
        )
    (line,) = request_log.lines
    assert line["method"] == "/tinkergate.v1.SessionService/GetSession"
    assert line["code"] == "OK"
    assert line["request_bytes"] == request.ByteSize()
    assert line["response_bytes"] == response.ByteSize()
    assert line["request_id"] == "abc"
    assert line["ms"] >= 0
    assert "business" not in request_log.text[0]
    assert "right" not in request_log.text[0]


async def test_the_log_does_not_quote_a_broken_request(probe, request_log):
    async with probe() as p:
        p.behaviour.unary = failing(invalid([Violation("prompt", "'my diary' is no prompt")]))
        await failure_of(p)
    (line,) = request_log.lines
    assert line["field"] == "prompt"
    assert line["reason"] == "INVALID_FIELD"
    assert "diary" not in request_log.text[0]


async def test_streamed_requests_are_counted_in_the_log(probe, request_log):
    messages = [ImportCheckpointRequest() for _ in range(3)]
    for message in messages:
        message.file.data = b"x" * 100
    async with probe() as p:
        await CheckpointServiceStub(p.channel).ImportCheckpoint(iter(messages))
        assert p.behaviour.imported == messages
    (line,) = request_log.lines
    assert line["request_bytes"] == sum(message.ByteSize() for message in messages)


@pytest.mark.parametrize("sent", ["", "x" * 200])
async def test_a_request_id_that_would_spoil_the_log_is_replaced(probe, request_log, sent):
    async with probe() as p:
        await SessionServiceStub(p.channel).GetSession(
            GetSessionRequest(), metadata=[("x-request-id", sent)]
        )
    (line,) = request_log.lines
    assert line["request_id"] != sent
    assert len(line["request_id"]) == 16


async def test_unknown_methods_are_unimplemented(probe):
    async with probe() as p:
        raw = p.channel.unary_unary("/tinkergate.v1.SessionService/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
