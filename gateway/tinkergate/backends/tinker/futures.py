"""Results of work that the service has accepted: long polls of retrieve_future (wire section
6.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tinkergate.backends.base import OnQueueState
from tinkergate.backends.failures import outcome_unknown, retry_after, unreachable
from tinkergate.backends.tinker.errors import failed_future, status_error
from tinkergate.backends.tinker.service import JSON, PROTOBUF, Call, Effect, Service
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.read_results import is_protobuf
from tinkergate.errors import GatewayError
from tinkergate.http import Answer, AnswerLost, NotSent
from tinkergate.v1 import QueueState

T = TypeVar("T")

BAD_REQUEST_TRIES = 3
"""How often a poll is sent that is answered 400."""
SHORT_POLL = 0.3
"""A poll that is answered sooner than this, in seconds, was not held; the next one waits."""
MAX_FAILED_BODY = 1 << 16
"""A larger body is a result; it is not looked through for an error first."""

_STATES = {
    "active": QueueState.QUEUE_STATE_ACTIVE,
    "paused_capacity": QueueState.QUEUE_STATE_PAUSED_CAPACITY,
    "paused_rate_limit": QueueState.QUEUE_STATE_PAUSED_RATE_LIMIT,
}


class FutureLost(Exception):
    """The service does not know the work any more (410)."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(str(error))
        self.error = error
        """What to tell if the work cannot be submitted anew."""


@dataclass(frozen=True)
class Accepted:
    """Work that the service has accepted."""

    operation: str
    """What it is called in errors."""
    request_id: str
    """The service's id of it."""
    request_type: str
    """What X-Tinker-Request-Type calls it."""
    model_id: str = ""
    """The service's id of the model, if the acceptance names one."""
    effect: Effect = Effect.NONE
    """What it means not to learn the result: but for `Effect.NONE`, an unknown outcome."""
    look: str = ""
    """How to find out or go on then, for people."""


def accepted(call: Call, request_type: str) -> Callable[[Answer], Accepted]:
    """Reads the acceptance of a call's work."""

    def read(answer: Answer) -> Accepted:
        fields = Fields(read_json(answer.body))
        return Accepted(
            call.operation,
            fields.text("request_id"),
            request_type,
            fields.optional_text("model_id") or "",
            call.effect,
            call.look,
        )

    return read


class Futures:
    """Fetches results."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def result(
        self,
        work: Accepted,
        read: Callable[[Answer], T],
        *,
        on_state: OnQueueState,
        protobuf: bool = False,
    ) -> T:
        """What came out of the work. `read` reads it; its GatewayErrors mean that the answer makes
        no sense, and it is asked for again. `on_state` is told the queue's state at every poll
        that finds the work unfinished. Raises FutureLost if the service has forgotten the work,
        else GatewayError."""
        service = self._service
        loop = asyncio.get_running_loop()
        pauses = service.pauses()
        ends = loop.time() + service.settings.operation_time
        iteration = bad_requests = early = 0
        while loop.time() < ends:
            call = self._poll(work, iteration, protobuf)
            iteration += 1
            asked: float | None = None
            begun = loop.time()
            try:
                answer = await service.once(call)
            except (NotSent, AnswerLost) as error:
                problem = f"cannot be asked for its result: {error}"
            except GatewayError as error:  # there is no key to ask with
                problem = f"cannot be asked for its result: {error}"
            else:
                if 200 <= answer.status < 300:
                    try:
                        body = _small_object(answer)
                        if "error" in body:
                            raise _Failed(body)
                        if body.get("type") != "try_again":
                            return read(answer)
                    except _Failed as failed:
                        raise failed_future(
                            service.name, work.operation, work.request_id, failed.body
                        ) from None
                    except GatewayError as error:
                        problem = f"has a result that makes no sense: {error}"
                        body = {}
                    pending = bool(body)
                else:
                    pending = answer.status == 408 or (
                        answer.status == 503 and service.settings.dialect == "mint"
                    )
                    problem = f"was answered {answer.status} when asked for its result"
                if pending:
                    pauses.all_well()
                    bad_requests = 0
                    _tell(answer, on_state)
                    # Services hold a poll until there is news; for one that does not, pause.
                    early = early + 1 if loop.time() - begun < SHORT_POLL else 0
                    if early > 1:
                        await asyncio.sleep(min(0.1 * early, 1.0))
                    continue
                if answer.status == 410:
                    raise FutureLost(self._lost(work, answer, "the service has forgotten it"))
                if answer.status == 402:
                    if await pauses.billing():
                        continue
                    raise self._lost(work, answer, "it asks for payment first")
                if answer.status == 400:
                    bad_requests += 1
                final = 300 <= answer.status < 500 and answer.status not in (409, 429)
                if final and not 0 < bad_requests < BAD_REQUEST_TRIES:
                    raise self._lost(work, answer, "its result is not to be had")
                asked = retry_after(answer.headers)
            if not await pauses.trouble(asked):
                raise self._given_up(work, problem)
        raise self._given_up(work, f"is not done after {service.settings.operation_time:g} s")

    def _poll(self, work: Accepted, iteration: int, protobuf: bool) -> Call:
        return Call(
            f"the result of {work.operation}",
            "retrieve_future",
            {"request_id": work.request_id, "allow_metadata_only": False},
            headers={
                "x-tinker-request-type": work.request_type,
                "x-tinker-request-iteration": str(iteration),
            },
            accept=f"{PROTOBUF}, {JSON}" if protobuf else JSON,
            within=self._service.settings.poll_timeout,
        )

    def _lost(self, work: Accepted, answer: Answer, why: str) -> GatewayError:
        name, operation, request_id = self._service.name, work.operation, work.request_id
        error = status_error(name, operation, answer, request_id)
        if work.effect is Effect.NONE:
            return error
        return outcome_unknown(name, operation, f"{why} ({error})", request_id, work.look)

    def _given_up(self, work: Accepted, problem: str) -> GatewayError:
        name, operation, request_id = self._service.name, work.operation, work.request_id
        if work.effect is Effect.NONE:
            return unreachable(name, operation, problem, request_id)
        return outcome_unknown(name, operation, f"it {problem}", request_id, work.look)


class _Failed(Exception):
    """The work failed there."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        self.body = body


def _small_object(answer: Answer) -> dict[str, Any]:
    """The answer as an object, if it can be something else than a result; else an empty one.
    Raises GatewayError if it is none."""
    if is_protobuf(answer.headers.get("content-type", "")) or len(answer.body) > MAX_FAILED_BODY:
        return {}
    return Fields(read_json(answer.body)).value


def _tell(answer: Answer, on_state: OnQueueState) -> None:
    """Pass the queue's state on, as far as the answer tells it."""
    try:
        fields = Fields(read_json(answer.body))
        state = fields.optional_text("queue_state") or "active"
        reason = fields.optional_text("queue_state_reason") or ""
    except GatewayError:
        return
    on_state(_STATES.get(state, QueueState.QUEUE_STATE_ACTIVE), reason)
