"""Work that a trainer or the queue of samplers has accepted: long polls of its result (wire section
5.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from tinkergate.backends.failures import outcome_unknown, retry_after, unreachable
from tinkergate.backends.loops.errors import failed_operation, status_error
from tinkergate.backends.loops.service import (
    THREAD_BYTES,
    Call,
    Effect,
    Service,
    at_leisure,
    body_of,
)
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import GatewayError, invalid_field
from tinkergate.http import Answer, AnswerLost, NotSent

T = TypeVar("T")

SCHEMA_VERSION = 1
SHORT_POLL = 0.3
"""A poll that is answered sooner than this, in seconds, was not held; the next one waits."""
_AGAIN = frozenset({429, 500, 502, 504})
"""Answers after which a result is asked for again, as after one that is lost."""


class OperationLost(Exception):
    """The service does not know the work any more, or is being shut down with it."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(str(error))
        self.error = error
        """What to tell if the work cannot be submitted anew."""


@dataclass(frozen=True)
class Accepted:
    """Work that the service has accepted."""

    operation: str
    """What it is called in errors."""
    operation_id: str
    url: str
    """Where its result is."""
    headers: Mapping[str, str]
    """Of its polls: they say whose it is as the submission did."""
    effect: Effect = Effect.NONE
    """What it means not to learn the result: but for `Effect.NONE`, an unknown outcome."""
    look: str = ""
    """How to find out or go on then, for people."""


def accepted(
    call: Call, base_url: str, effect: Effect | None = None
) -> Callable[[Answer], Accepted]:
    """Reads the acceptance of a call's work by the trainer or sampler at `base_url`. `effect` is
    that of the work, where it is another one than the submission's."""
    headers = {k: v for k, v in (call.headers or {}).items() if k != "idempotency-key"}

    def read(answer: Answer) -> Accepted:
        if answer.status != 202:
            raise invalid_field("status", f"is {answer.status}; must be 202")
        fields = body_of(answer)
        version = fields.optional_integer("schema_version")
        if version not in (None, SCHEMA_VERSION):
            raise fields.wrong("schema_version", f"must be {SCHEMA_VERSION}")
        operation_id = fields.text("operation_id")
        if not operation_id:
            raise fields.wrong("operation_id", "must not be empty")
        return Accepted(
            call.operation,
            operation_id,
            f"{base_url}/operations/{quote(operation_id, safe='')}",
            headers,
            call.effect if effect is None else effect,
            call.look,
        )

    return read


class Operations:
    """Fetches results."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def result(
        self, work: Accepted, read: Callable[[Fields], T], on_pending: Callable[[], None]
    ) -> T:
        """What came out of the work. `read` reads it; its GatewayErrors mean that it makes no
        sense, and another answer is not to be expected. `on_pending` is called at every poll that
        finds the work unfinished. Raises OperationLost, else GatewayError."""
        service = self._service
        loop = asyncio.get_running_loop()
        pauses = service.pauses()
        ends = loop.time() + service.settings.operation_time
        early = 0
        call = Call(
            f"the result of {work.operation}",
            work.url,
            method="GET",
            headers=work.headers,
            within=service.settings.poll_timeout,
        )
        while loop.time() < ends:
            asked: float | None = None
            begun = loop.time()
            try:
                answer = await service.once(call)
            except (NotSent, AnswerLost) as error:
                problem = f"cannot be asked for its result: {error}"
            else:
                problem = f"was answered {answer.status} when asked for its result"
                asked = retry_after(answer.headers)
                pending = answer.status == 408
                large = len(answer.body) > THREAD_BYTES
                if answer.status == 200:
                    try:
                        fields = await at_leisure(body_of, answer, large=large)
                        status = fields.optional_text("status")
                        if status == "error":
                            raise _Failed(fields)
                        pending = status != "done"
                        if not pending:
                            result = fields.fields("result")
                            return await at_leisure(self._read, read, result, large=large)
                    except _Failed as failed:
                        raise failed_operation(
                            service.name, work.operation, work.operation_id, failed.fields.value
                        ) from None
                    except _Senseless as senseless:
                        problem = f"has a result that makes no sense: {senseless}"
                        raise self._given_up(work, problem) from None
                    except GatewayError as error:
                        problem = f"was answered what makes no sense: {error}"
                if pending:
                    pauses.all_well()
                    on_pending()
                    # Services hold a poll until there is news; for one that does not, pause.
                    early = early + 1 if loop.time() - begun < SHORT_POLL else 0
                    if early > 1:
                        await asyncio.sleep(min(0.1 * early, 1.0))
                    continue
                again = answer.status in _AGAIN or answer.status == 200
                if not again and not (answer.status == 503 and asked is not None):
                    raise OperationLost(self._lost(work, answer))
            if not await pauses.trouble(asked):
                raise self._given_up(work, problem)
        raise self._given_up(work, f"is not done after {service.settings.operation_time:g} s")

    @staticmethod
    def _read(read: Callable[[Fields], T], fields: Fields) -> T:
        try:
            return read(fields)
        except GatewayError as error:
            raise _Senseless(str(error)) from None

    def _lost(self, work: Accepted, answer: Answer) -> GatewayError:
        name, operation, operation_id = self._service.name, work.operation, work.operation_id
        error = status_error(name, operation, answer, operation_id)
        if work.effect is Effect.NONE:
            return error
        why = {
            404: "the service has forgotten it",
            410: "the service has forgotten it",
            503: "the service was shut down meanwhile",
        }.get(answer.status, "its result is not to be had")
        return outcome_unknown(name, operation, f"{why} ({error})", operation_id, work.look)

    def _given_up(self, work: Accepted, problem: str) -> GatewayError:
        name, operation, operation_id = self._service.name, work.operation, work.operation_id
        if work.effect is Effect.NONE:
            return unreachable(name, operation, problem, operation_id)
        return outcome_unknown(name, operation, f"it {problem}", operation_id, work.look)


class _Failed(Exception):
    """The work failed there."""

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.fields = fields


class _Senseless(Exception):
    """The result cannot be read."""
