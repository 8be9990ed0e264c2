"""Trainers: work on a run, in its order, and its results (wire section 5).

A request is answered as soon as its place in the order is fixed. One that is wrong is refused, and
takes its turn all the same: the SDK numbers its requests, and what it sends next would wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.dialects.loops.read_requests import (
    Ordered,
    optim_step_request,
    save_state_request,
    save_weights_request,
)
from tinkergate.dialects.loops.read_training import PassNote, pass_request, token_counts
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field
from tinkergate.ingress.loops_rest.bodies import Body, body_of
from tinkergate.ingress.loops_rest.context import TRAINERS, Context
from tinkergate.ingress.loops_rest.errors import marked
from tinkergate.ingress.loops_rest.identity import check_trainer
from tinkergate.ingress.loops_rest.ids import run_of_operation
from tinkergate.ingress.loops_rest.results import Results
from tinkergate.ingress.loops_rest.runs import Run
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.ingress.turns import takes_turn
from tinkergate.v1 import (
    ForwardBackwardRequest,
    ForwardRequest,
    GetOperationRequest,
    LoadStateRequest,
    Model,
    ModelState,
    Operation,
    OptimStepRequest,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    WaitOperationRequest,
)

HEALTH_HOLD = 8.0
"""The most seconds that a health probe waits for a model that is being made: the SDK gives a probe
10 s, and asks again after 10 more."""

_Make: TypeAlias = Callable[[Run, Body], Awaitable[tuple[Ordered, PassNote | None]]]
_Empty: TypeAlias = Callable[[], Ordered]


def accepted(operation_id: str, location: str) -> Response:
    """The answer of a call whose result is to be asked for."""
    told = {"operation_id": operation_id, "schema_version": 1}
    return json_response(told, 202, {"location": location})


def routes(context: Context) -> list[Route]:
    """The routes."""
    trainers = _Trainers(context)
    base = f"{TRAINERS}{{run_id}}"
    kinds: dict[str, tuple[_Make, _Empty]] = {
        "forward": (partial(trainers.read_pass, forward_only=True), ForwardRequest),
        "forward_backward": (
            partial(trainers.read_pass, forward_only=False),
            ForwardBackwardRequest,
        ),
        "optim_step": (trainers.read_optim_step, OptimStepRequest),
        "save_state": (trainers.read_save_state, SaveStateRequest),
        "save_weights_for_sampler": (trainers.read_save_weights, SaveWeightsForSamplerRequest),
        "load_state": (partial(trainers.read_load, with_optimizer=False), LoadStateRequest),
        "load_state_with_optimizer": (
            partial(trainers.read_load, with_optimizer=True),
            LoadStateRequest,
        ),
    }
    return [
        *(
            Route(f"{base}/{name}", trainers.operation(*kind), methods=["POST"])
            for name, kind in kinds.items()
        ),
        Route(f"{base}/operations/{{operation_id:path}}", trainers.poll, methods=["GET"]),
        Route(f"{base}/health", trainers.health, methods=["GET"]),
        Route(f"{base}/policy_version", trainers.policy_version, methods=["GET"]),
        Route(f"{base}/init_trainer_server", trainers.init, methods=["POST"]),
    ]


class _Trainers:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._gateway = context.gateway
        self._runs = context.runs
        self._results = Results(context)

    async def health(self, request: Request) -> Response:
        """Whether the trainer is there; keeps its session alive. 503 while its model is made; a
        refusal that ends the client's wait if that failed."""
        run_id = request.path_params["run_id"]
        try:
            run = self._runs.require(run_id)
            model = await self._made(run)
        except GatewayError as error:
            raise marked(error, "trainer_not_found", 410) from None
        if model.state == ModelState.MODEL_STATE_CREATING:
            return json_response({"status": "starting"}, 503)
        if model.state != ModelState.MODEL_STATE_READY:
            raise marked(await self._failure(run, model), "trainer_failed", 410)
        return json_response({"status": "ok"})

    async def _failure(self, run: Run, model: Model) -> GatewayError:
        """Why a run has no trainer."""
        state = ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
        asked = GetOperationRequest(name=run.create_name)
        created = (await self._gateway.operations.get(asked)).operation
        why = f"{state}: {created.error.message}" if created.HasField("error") else state
        return GatewayError(
            Kind.PRECONDITION,
            ErrorReason.ERROR_REASON_MODEL_NOT_READY,
            f"the trainer of run {run.run_id!r} cannot be used: {why}",
        )

    async def _made(self, run: Run) -> Model:
        model = await self._runs.model(run)
        if model.state == ModelState.MODEL_STATE_CREATING:
            wait = WaitOperationRequest(name=run.create_name)
            wait.timeout.FromNanoseconds(round(HEALTH_HOLD * 1e9))
            await self._gateway.operations.wait(wait)
            model = await self._runs.model(run)
        return model

    async def policy_version(self, request: Request) -> Response:
        """How many optimizer steps the run has taken. Dedicated trainers only."""
        run = self._runs.require(request.path_params["run_id"])
        if self._context.serverless:
            told = {"detail": "serverless trainers do not tell their policy version"}
            return json_response(told, 501)
        return json_response({"policy_version": (await self._runs.model(run)).optimizer_steps})

    async def init(self, request: Request) -> Response:
        """Gives the run a fresh adapter, with no optimizer steps and no gradients."""
        run = self._run(request)
        body = await body_of(request)
        key = request.headers.get("idempotency-key", "")
        async with run.resetting:
            if (known := run.keys.get(key)) is None:
                fields = body.fields
                _check_run(run, fields)
                rank = fields.integer("lora_rank")
                if rank < 1:
                    raise fields.wrong("lora_rank", "must be at least 1")
                known = await self._runs.reset(run, rank, _seq_id(fields))
                run.note_key(key, known)
        return self._accepted(request, run, known)

    def operation(self, make: _Make, empty: _Empty) -> Callable[[Request], Awaitable[Response]]:
        """The handler of a route whose body `make` reads."""

        async def handle(request: Request) -> Response:
            run = self._run(request)
            body = await body_of(request)
            key = request.headers.get("idempotency-key", "")
            known = run.keys.get(key)
            if known is None:
                _check_run(run, body.fields)
                known = (await self._begin(run, body, key, make, empty)).name
            return self._accepted(request, run, known)

        return handle

    async def _begin(self, run: Run, body: Body, key: str, make: _Make, empty: _Empty) -> Operation:
        """Read a request and give it its place."""
        run.touched = True
        asked: Ordered | None = None
        try:
            asked, note = await make(run, body)
            _put(asked, run, body.fields, key)
            operation = await self._gateway.training.submit(asked)
        except GatewayError as error:
            await self._refuse(asked or empty(), run, body.fields, key, error)
            raise
        run.note_key(key, operation.name)
        if note is not None:
            self._context.notes.add(operation.name, note)
        if isinstance(asked, SaveWeightsForSamplerRequest) and body.fields.flag("bump_version"):
            run.publishing.append(operation.name)
        return operation

    async def _refuse(
        self, asked: Ordered, run: Run, fields: Fields, key: str, error: GatewayError
    ) -> None:
        """Have a refused request take its turn, if it says which that is."""
        if not takes_turn(error):
            return
        try:
            _put(asked, run, fields, key)
        except GatewayError:
            return
        if asked.HasField("seq_id"):
            await self._gateway.training.refuse(asked, error)

    async def read_pass(
        self, run: Run, body: Body, *, forward_only: bool
    ) -> tuple[Ordered, PassNote | None]:
        """forward and forward_backward."""
        asked, note = await body.read(partial(pass_request, forward_only=forward_only))
        if run.max_seq_len is not None:
            for index, count in enumerate(token_counts(asked)):
                if count > run.max_seq_len:
                    raise invalid_field(
                        f"data[{index}].model_input",
                        f"has {count} tokens; the run's max_seq_len is {run.max_seq_len}",
                    )
        return asked, note

    async def read_optim_step(self, run: Run, body: Body) -> tuple[Ordered, None]:  # noqa: ARG002
        """optim_step."""
        return optim_step_request(body.fields), None

    async def read_save_state(self, run: Run, body: Body) -> tuple[Ordered, None]:  # noqa: ARG002
        """save_state."""
        return save_state_request(body.fields), None

    async def read_save_weights(self, run: Run, body: Body) -> tuple[Ordered, None]:  # noqa: ARG002
        """save_weights_for_sampler."""
        body.fields.flag("bump_version")
        return save_weights_request(body.fields), None

    async def read_load(
        self,
        run: Run,  # noqa: ARG002
        body: Body,
        *,
        with_optimizer: bool,
    ) -> tuple[Ordered, None]:
        """load_state and load_state_with_optimizer."""
        path = await self._runs.canonical("path", body.fields.text("path"))
        return LoadStateRequest(path=path, with_optimizer=with_optimizer), None

    async def poll(self, request: Request) -> Response:
        """The result of an operation, or 408 when it is not there yet."""
        run_id, name = request.path_params["run_id"], request.path_params["operation_id"]
        check_trainer(self._context, request, run_id)
        if run_of_operation(name) != run_id:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND,
                f"run {run_id!r} has no operation {name[:300]!r}",
            )
        request.scope["state"]["quiet"] = True
        answer = await self._results.answer(name)
        if (run := self._runs.find(run_id)) is not None:
            # What was published is noted now: results are not kept for ever.
            await self._runs.published(run, 0, 0)
        return answer

    def _run(self, request: Request) -> Run:
        run_id = request.path_params["run_id"]
        check_trainer(self._context, request, run_id)
        return self._runs.require(run_id)

    def _accepted(self, request: Request, run: Run, name: str) -> Response:
        return accepted(name, f"{self._context.trainer_url(request, run)}/operations/{name}")


def _check_run(run: Run, fields: Fields) -> None:
    named = fields.optional_text("run_id")
    if named not in (None, run.run_id):
        raise fields.wrong("run_id", f"the trainer is of run {run.run_id!r}")


def _seq_id(fields: Fields) -> int | None:
    seq_id = fields.optional_integer("seq_id")
    if seq_id is not None and seq_id < 1:
        raise fields.wrong("seq_id", "must be at least 1")
    return seq_id


def _put(asked: Ordered, run: Run, fields: Fields, key: str) -> None:
    """Note the model, and the place in its order: what comes after the call that made the model
    ready is counted from 1."""
    asked.model_id = run.model_id
    seq_id = _seq_id(fields)
    if seq_id is None:
        asked.request_id = key
        return
    first = run.first_seq or 0
    if seq_id <= first:
        raise fields.wrong("seq_id", f"must be over {first}, that of init_trainer_server")
    asked.seq_id = seq_id - first
