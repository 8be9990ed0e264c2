"""Requests to Loops: the key, headers, and what is sent again when (wire sections 2 and 3).

Whether a request may be sent again after its answer was lost depends on what it does, see `Effect`.
What was surely not done (no connection came about, or the service answered 429, or that it is still
starting) is always sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from tinkergate.backends.failures import failure, outcome_unknown, retry_after, unreachable
from tinkergate.backends.loops.errors import marked_final, status_error
from tinkergate.backends.loops.settings import LoopsSettings
from tinkergate.backends.pauses import Pauses
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import GatewayError
from tinkergate.http import Answer, AnswerLost, HttpClient, NotSent

_log = logging.getLogger(__name__)
T = TypeVar("T")

CLIENT_VERSION = "0.32.0"
"""The version of the official client whose dialect is spoken."""

THREAD_BYTES = 1 << 20
"""From how many bytes on an answer is read on another thread."""

_STARTING = frozenset({400, 404})
"""What trainers and dedicated samplers answer while they are still starting, unless marked."""


class Effect(Enum):
    """What it means to do a request twice."""

    NONE = auto()
    """Nothing: it changes nothing, or doing it twice is as good as once."""
    KEYED = auto()
    """The service does it once, because it knows it again by its Idempotency-Key. If its answer
    stays lost, nobody knows whether it was done."""
    ONCE = auto()
    """It would be done twice. Never sent again once it may have arrived."""


@dataclass(frozen=True)
class Manners:
    """What the answers of one part of Loops mean."""

    again: frozenset[int]
    """Answers after which the request is sent again."""
    again_if_asked: frozenset[int] = frozenset()
    """The same, if the answer says after how long."""
    gate: bool = False
    """Whether 408 means that the weights asked for are not loaded yet."""


CONTROL = Manners(frozenset({408, 500, 502, 503, 504}))
"""The control plane."""
TRAINER = Manners(frozenset({408, 500, 502, 504}), frozenset({503}))
"""A trainer; 503 without a time to wait means that it is being shut down."""
QUEUE = Manners(frozenset({408, 500, 502, 504}), frozenset({503}))
"""The queue of serverless samplers."""
SAMPLER = Manners(frozenset({502, 503}), gate=True)
"""A dedicated sampler. 504 is how the platform ends a call that takes too long."""


@dataclass(frozen=True)
class Call:
    """One request."""

    operation: str
    """What it is called in errors, such as "optim_step of model s:train:0"."""
    url: str
    body: Mapping[str, Any] | None = None
    method: str = "POST"
    manners: Manners = CONTROL
    effect: Effect = Effect.NONE
    look: str = ""
    """How to find out or go on if the outcome is unknown, for people."""
    headers: Mapping[str, str] | None = None
    within: float | None = None
    """The most seconds for one try; None takes the setting."""
    patience: float | None = None
    """How long trouble is put up with, in seconds; None takes the setting."""
    busy_patience: float | None = None
    """The same for answers of 429, and for those that say after how long to come again; None takes
    `patience`."""
    starting: float = 0.0
    """For how long 400 and 404 mean that the service is still starting, in seconds."""


class Service:
    """The service behind one backend."""

    def __init__(self, settings: LoopsSettings, client: HttpClient) -> None:
        self.settings = settings
        self._client = client

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.settings.name

    async def call(
        self,
        call: Call,
        read: Callable[[Answer], T],
        *,
        on_wait: Callable[[str], None] | None = None,
    ) -> T:
        """Send a request until it is answered, and read the answer with `read`, whose GatewayErrors
        mean that the answer makes no sense and is as good as lost. `on_wait` is told, in words, why
        the service is waited for. Raises GatewayError."""
        pauses = self.pauses(call.patience)
        arrived = False
        """Whether an earlier try may have arrived."""
        content = b"" if call.body is None else write_json(call.body)
        while True:
            asked: float | None = None
            try:
                answer = await self._send(call, content)
            except NotSent as error:
                problem = f"cannot be sent: {error}"
            except AnswerLost as error:
                arrived, problem = True, f"was not answered: {error}"
            else:
                if 200 <= answer.status < 300:
                    try:
                        return await at_leisure(read, answer, large=len(answer.body) > THREAD_BYTES)
                    except GatewayError as error:
                        arrived, problem = True, f"was answered what makes no sense: {error}"
                else:
                    asked = retry_after(answer.headers)
                    problem = f"was answered {answer.status}"
                    limit = self._wait_limit(call, answer, asked)
                    if limit is not None:
                        if on_wait is not None:
                            on_wait(f"{call.operation} {problem}")
                        if not await pauses.busy(limit, asked):
                            raise self._final(call, answer, arrived)
                        continue
                    if marked_final(answer) or answer.status not in call.manners.again:
                        raise self._final(call, answer, arrived)
                    arrived = True
                    if call.effect is Effect.ONCE or not await pauses.trouble(asked):
                        raise self._final(call, answer, arrived)
                    continue
            once = arrived and call.effect is Effect.ONCE
            if once or not await pauses.trouble(asked):
                if arrived and call.effect is not Effect.NONE:
                    raise outcome_unknown(
                        self.name, call.operation, f"it {problem}", look=call.look
                    )
                raise unreachable(self.name, call.operation, problem)

    def _wait_limit(self, call: Call, answer: Answer, asked: float | None) -> float | None:
        """How long the service is waited for that answered so; None if it is not a matter of
        waiting."""
        settings = self.settings
        if marked_final(answer):
            return None
        if answer.status in _STARTING and call.starting:
            return call.starting
        if answer.status == 408 and call.manners.gate:
            return settings.ready_time
        busy = settings.retry_time if call.patience is None else call.patience
        busy = busy if call.busy_patience is None else call.busy_patience
        if answer.status == 429:
            return busy
        if answer.status in call.manners.again_if_asked and asked is not None:
            return busy
        return None

    def _final(self, call: Call, answer: Answer, arrived: bool) -> GatewayError:
        """The error of an answer that is the last one."""
        error = status_error(self.name, call.operation, answer)
        # Whoever answers 5xx, or stands before the service, may do so after the work was done.
        arrived = arrived or (answer.status >= 500 and answer.status != 501)
        if arrived and call.effect is not Effect.NONE:
            # This answer says nothing about the try before it, or is no answer of the service.
            unknown = outcome_unknown(self.name, call.operation, str(error), look=call.look)
            unknown.metadata = {**error.metadata, **unknown.metadata}
            return unknown
        return error

    def pauses(self, patience: float | None = None) -> Pauses:
        """The waiting of one request."""
        return Pauses(self.settings.retry_time if patience is None else patience, 0.0)

    async def once(self, call: Call) -> Answer:
        """Send a request once. Any status is an answer. Raises NotSent and AnswerLost."""
        return await self._send(call, b"" if call.body is None else write_json(call.body))

    async def _send(self, call: Call, content: bytes) -> Answer:
        headers = {
            "user-agent": f"Tinkergate baseten-loops/{CLIENT_VERSION}",
            "x-baseten-accept-error": "1",
            **(call.headers or {}),
        }
        if self.settings.api_key:
            headers["authorization"] = f"Api-Key {self.settings.api_key}"
        if call.body is not None:
            headers["content-type"] = "application/json"
        elif call.method != "GET":
            # Some servers on the way refuse what has neither a body nor says that it has none.
            headers["content-length"] = "0"
        return await self._client.send(
            call.method,
            call.url,
            headers=headers,
            content=content,
            within=call.within or self.settings.request_timeout,
            max_bytes=self.settings.max_answer_bytes,
        )

    async def quietly(self, call: Call) -> bool:
        """Send a request whose failure matters to nobody, once. Whether it succeeded."""
        try:
            answer = await self.once(call)
        except (NotSent, AnswerLost) as error:
            self.note(call.operation, error)
            return False
        if answer.status < 300:
            return True
        _log.info("backend %s: %s was answered %d", self.name, call.operation, answer.status)
        return False

    def note(self, doing: str, error: Exception) -> None:
        """Log a failure that matters to no caller."""
        _log.info("backend %s: %s failed: %s", self.name, doing, error)

    def broken(self, operation: str, told: str, request_id: str = "") -> GatewayError:
        """The service's answers do not fit together."""
        return failure(self.name, operation, told, request_id=request_id)


async def at_leisure(read: Callable[..., T], *args: Any, large: bool) -> T:
    """What a function answers, on another thread if it has much to read."""
    return await asyncio.to_thread(read, *args) if large else read(*args)


def body_of(answer: Answer) -> Fields:
    """The object that an answer is. Raises GatewayError (INVALID)."""
    return Fields(read_json(answer.body))


def nothing(answer: Answer) -> None:
    """Reads nothing: any answer will do."""
