"""Results of a trainer's operations, as often as they are asked for (wire sections 5.1 and 5.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from tinkergate.dialects.loops.write_results import (
    done_to_json,
    failure_to_json,
    optim_step_to_json,
    pass_to_json,
)
from tinkergate.dialects.tinker.json_text import write_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.http.bodies import THREAD_BYTES
from tinkergate.ingress.loops_rest.context import Context
from tinkergate.ingress.loops_rest.ids import in_own_words
from tinkergate.ingress.loops_rest.runs import loops_form_of
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import (
    GetModelRequest,
    Operation,
    OperationError,
    OperationState,
    WaitOperationRequest,
)

_DONE = frozenset(
    {
        OperationState.OPERATION_STATE_SUCCEEDED,
        OperationState.OPERATION_STATE_FAILED,
        OperationState.OPERATION_STATE_CANCELLED,
    }
)
PENDING: Mapping[str, Any] = {"status": "pending"}


class Results:
    """Waits for operations and tells what came of them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def answer(self, name: str) -> Response:
        """The answer of a poll, after holding it. Raises GatewayError (OPERATION_NOT_FOUND,
        RESULT_EXPIRED)."""
        wait = WaitOperationRequest(name=name)
        wait.timeout.FromNanoseconds(round(self._context.poll_limit * 1e9))
        operation = (await self._context.gateway.operations.wait(wait)).operation
        if operation.state not in _DONE:
            return json_response(PENDING, 408)
        if operation.HasField("error"):
            return failure(operation.error)
        if operation.result_expired:
            raise _gone(name)
        try:
            return await self._told(operation)
        except GatewayError as error:
            if error.reason == ErrorReason.ERROR_REASON_RESULT_EXPIRED:
                raise
            return failure(error.to_operation_error())

    async def _told(self, operation: Operation) -> Response:
        kind = operation.WhichOneof("result")
        if kind == "forward_backward":
            return await self._pass(operation)
        result: dict[str, Any]
        match kind:
            case "create_model":
                asked = GetModelRequest(model_id=operation.create_model.model_id)
                model = (await self._context.gateway.models.get(asked)).model
                result = {"step": 0, "lora_rank": model.lora_config.rank}
            case "optim_step":
                result = optim_step_to_json(operation.optim_step)
            case "save_state":
                result = {"mode": "", "path": _path(operation.save_state.path)}
            case "save_weights_for_sampler":
                saved = operation.save_weights_for_sampler
                result = {"version": saved.optimizer_steps, "path": _path(saved.path)}
            case "load_state":
                result = {"step": operation.load_state.optimizer_steps}
            case _:
                raise _gone(operation.name)
        return json_response(done_to_json(result))

    async def _pass(self, operation: Operation) -> Response:
        note = self._context.notes.find(operation.name)
        if note is None:
            raise _gone(operation.name)
        output = operation.forward_backward

        def write() -> bytes:
            return write_json(done_to_json(pass_to_json(output, note)))

        body = write() if output.ByteSize() < THREAD_BYTES else await asyncio.to_thread(write)
        return Response(body, media_type="application/json")


def failure(error: OperationError) -> Response:
    """The answer of an operation that has failed."""
    told = failure_to_json(error)
    return json_response({**told, "error": in_own_words(told["error"])})


def _path(canonical: str) -> str:
    path = loops_form_of(canonical)
    return "" if path is None else str(path)


def _gone(name: str) -> GatewayError:
    return GatewayError(
        Kind.NOT_FOUND,
        ErrorReason.ERROR_REASON_RESULT_EXPIRED,
        f"the result of {name[:300]!r} is no longer kept",
    )
