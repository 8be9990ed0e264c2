"""Futures: waiting for results, and giving them up (wire sections 6.4 to 6.6)."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.dialects.tinker.json_text import write_json
from tinkergate.dialects.tinker.write_results import (
    failure_to_json,
    load_create_to_json,
    operation_to_json,
    sample_to_json,
    try_again_to_json,
)
from tinkergate.errors import GatewayError, Kind
from tinkergate.ingress.http.bodies import THREAD_BYTES
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import (
    CancelOperationRequest,
    ErrorReason,
    Operation,
    OperationState,
    SampleResponse,
    WaitOperationRequest,
)

PROTOBUF = "application/x-protobuf"
METADATA_BYTES = 1 << 20
"""Results from this size on are announced first to clients that ask for it: they keep count of what
they have in flight."""

ANSWER_MARGIN = 5.0
"""Seconds before a client gives up at which it is answered."""

LOAD_CREATE = "#load_weights"
"""What ends the request id of a model that is made by load_weights: the result is told in another
form than that of create_model, of which it is the same operation."""

_SAMPLES = ("samplers/", "samples/")
_DONE = frozenset(
    {
        OperationState.OPERATION_STATE_SUCCEEDED,
        OperationState.OPERATION_STATE_FAILED,
        OperationState.OPERATION_STATE_CANCELLED,
    }
)
_GONE = frozenset(
    {ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND, ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND}
)


def routes(context: Context) -> list[Route]:
    """The routes."""
    futures = _Futures(context)
    return [
        Route(f"{API}/retrieve_future", futures.retrieve, methods=["POST"]),
        Route(f"{API}/retrieve_futures", futures.retrieve_many, methods=["POST"]),
        Route(f"{API}/cancel_future", futures.cancel, methods=["POST"]),
    ]


class _Futures:
    def __init__(self, context: Context) -> None:
        self._gateway = context.gateway
        self._long_poll = context.long_poll

    async def retrieve(self, request: Request) -> Response:
        """The result of a future, or 408 when it is not there yet."""
        fields = await json_fields(request)
        name = fields.text("request_id")
        poll = _Poll(request, name, fields.flag("allow_metadata_only"))
        limit = poll_limit(request, self._long_poll)
        if name.startswith(_SAMPLES):
            return await self._sample(poll, limit)
        return await self._operation(poll, limit)

    async def _operation(self, poll: _Poll, limit: float) -> Response:
        name = poll.request_id.removesuffix(LOAD_CREATE)
        wait = WaitOperationRequest(name=name)
        wait.timeout.FromNanoseconds(round(limit * 1e9))
        operation = (await self._gateway.operations.wait(wait)).operation
        if operation.state not in _DONE:
            told = try_again_to_json(
                poll.request_id, operation.queue_state, operation.queue_state_reason
            )
            return json_response(told, 408)
        if operation.HasField("error"):
            return json_response(failure_to_json(operation.error))
        if operation.result_expired:
            raise _gone(f"the result of {name!r} is no longer kept")
        return await poll.answer_operation(operation)

    async def _sample(self, poll: _Poll, limit: float) -> Response:
        futures = self._gateway.sample_futures
        try:
            future = futures.require(poll.request_id)
            with self._gateway.sessions.calling(future.session_id):
                response = await futures.wait(poll.request_id, limit)
        except GatewayError as error:
            if error.reason == ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND:
                # The client draws anew.
                raise _gone(error.message) from None
            return json_response(failure_to_json(error.to_operation_error()))
        if response is None:
            return json_response(try_again_to_json(poll.request_id, *future.queue_state), 408)
        return await poll.answer_sample(response)

    async def retrieve_many(self, request: Request) -> Response:
        """Which sample calls of a sampler have ended since the caller last asked."""
        fields = await json_fields(request)
        target = fields.fields("target")
        if target.text("type") != "sampling_session":
            raise target.wrong("type", "must be 'sampling_session'")
        futures = self._gateway.sample_futures
        futures.free(fields.texts("retrieved_request_ids"))
        timeout = fields.optional_number("timeout")
        limit = poll_limit(request, self._long_poll)
        if timeout is not None:
            limit = max(0.0, min(limit, timeout))
        sampler = await self._gateway.samplers.require(target.text("sampling_session_id"))
        with self._gateway.sessions.calling(sampler.message.session_id):
            completions, cursor = await futures.completions(
                sampler.message.sampler_id,
                target.optional_integer("cloned_sampler_id", bits=64) or 0,
                fields.optional_integer("prev_cursor", bits=64) or 0,
                limit,
            )
        told: list[dict[str, Any]] = []
        for name, size in completions:
            if size is None:
                told.append({"state": "failed", "request_id": name})
            else:
                told.append(
                    {
                        "state": "finished",
                        "request_id": name,
                        "response_payload_uncompressed_size": size,
                    }
                )
        return json_response({"completions": told, "cursor": cursor})

    async def cancel(self, request: Request) -> Response:
        """Gives a future up. One that is done, or not known, is no error."""
        name = (await json_fields(request)).text("request_id").removesuffix(LOAD_CREATE)
        if name.startswith(_SAMPLES):
            self._gateway.sample_futures.cancel(name)
        else:
            try:
                await self._gateway.operations.cancel(CancelOperationRequest(name=name))
            except GatewayError as error:
                if error.reason not in _GONE:
                    raise
        return json_response({})


class _Poll:
    """One call of retrieve_future, which is answered in the form that it asks for."""

    def __init__(self, request: Request, request_id: str, metadata_only: bool) -> None:
        self.request_id = request_id
        self._protobuf = any(PROTOBUF in value for value in request.headers.getlist("accept"))
        self._metadata_only = metadata_only

    async def answer_operation(self, operation: Operation) -> Response:
        """The result of an operation."""
        if self.request_id.endswith(LOAD_CREATE):
            return json_response(load_create_to_json(operation))
        if operation.WhichOneof("result") != "forward_backward":
            return json_response(operation_to_json(operation))
        output = operation.forward_backward
        size = output.ByteSize()
        if self._protobuf:
            return self._announced(size) or _protobuf(output.SerializeToString())
        return await self._json(operation_to_json, operation, size)

    async def answer_sample(self, response: SampleResponse) -> Response:
        """The result of a sample call."""
        size = response.ByteSize()
        if self._protobuf:
            return self._announced(size) or _protobuf(response.SerializeToString())
        return await self._json(sample_to_json, response, size)

    def _announced(self, size: int) -> Response | None:
        """The announcement of a large result, if one is wanted."""
        if not self._metadata_only or size < METADATA_BYTES:
            return None
        return json_response({"status": "complete_metadata", "response_payload_size": size})

    async def _json(self, write: Any, message: Any, size: int) -> Response:
        if size < THREAD_BYTES:
            body = write_json(write(message))
        else:
            body = await asyncio.to_thread(lambda: write_json(write(message)))
        return self._announced(len(body)) or Response(body, media_type="application/json")


def _protobuf(body: bytes) -> Response:
    return Response(body, media_type=PROTOBUF)


def _gone(message: str) -> GatewayError:
    return GatewayError(Kind.NOT_FOUND, ErrorReason.ERROR_REASON_RESULT_EXPIRED, message)


def poll_limit(request: Request, most: float) -> float:
    """How long a poll is held: at most `most` seconds, and so that the answer still finds a client
    that says how long it waits."""
    said = request.headers.get("x-stainless-read-timeout", "")
    try:
        patience = float(said)
    except ValueError:
        return most
    if not patience > 0:
        return most
    return min(most, max(patience - ANSWER_MARGIN, patience / 2))
