"""Requests to the service: keys, headers, and what is sent again when (wire sections 1 and 2).

Whether a request may be sent again after its answer was lost depends on what it does, see `Effect`.
What was surely not done (no connection came about, or the service answered 402, 409 or 429) is
always sent again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

import zstandard

from tinkergate.backends.failures import failure, outcome_unknown, retry_after, unreachable
from tinkergate.backends.pauses import Pauses
from tinkergate.backends.tinker.auth import Credentials
from tinkergate.backends.tinker.errors import status_error
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import GatewayError, Kind
from tinkergate.http import Answer, AnswerLost, HttpClient, NotSent

_log = logging.getLogger(__name__)
T = TypeVar("T")

CLIENT_VERSION = "0.38.0"
"""The version of the official client whose dialect is spoken."""

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

CONFLICT_TIME = 30.0
"""How long a request that is answered 409 is sent again."""
EMPTY_400_TRIES = 4
"""How often a request is sent again that is answered 400 without a word: that is no answer of the
service but of something on the way (wire section 1.5)."""

_MAYBE_LATER = frozenset({408, 500, 502, 503, 504})


class Effect(Enum):
    """What it means to do a request twice."""

    NONE = auto()
    """Nothing: it changes nothing, or doing it twice is as good as once."""
    NUMBERED = auto()
    """The service does it once, because it knows it again by its number. If its answer stays lost,
    nobody knows whether it was done."""
    ONCE = auto()
    """It would be done twice. Never sent again once it may have arrived."""


@dataclass(frozen=True)
class Flags:
    """What the service's configuration says that matters here (wire section 2.3)."""

    exchange_keys: bool = False
    compress_training: bool = False
    billing_pause: float | None = None


@dataclass(frozen=True)
class Call:
    """One request."""

    operation: str
    """What it is called in errors, such as "optim_step of model s:train:0"."""
    path: str
    """After `/api/v1/`."""
    body: Mapping[str, Any] | bytes | None = None
    """JSON, or protobuf if it is bytes."""
    method: str = "POST"
    effect: Effect = Effect.NONE
    look: str = ""
    """How to find out or go on if the outcome is unknown, for people."""
    headers: Mapping[str, str] | None = None
    accept: str = JSON
    within: float | None = None
    """The most seconds for one try; None takes the setting."""
    patience: float | None = None
    """How long trouble is put up with, in seconds; None takes the setting."""
    busy_patience: float | None = None
    """The same for answers of 429; None takes `patience`."""
    compress: bool = False
    """Whether to compress the body."""


class Service:
    """The service behind one backend."""

    def __init__(self, settings: TinkerSettings, client: HttpClient) -> None:
        self.settings = settings
        self.flags = Flags()
        self._client = client
        self._root = f"{settings.url}/api/v1/"
        self._credentials = Credentials(settings.api_key, self._exchange)

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.settings.name

    async def open(self) -> None:
        """Ask for the service's configuration. Raises GatewayError if it cannot be had, or if the
        key is not taken."""
        call = Call(
            "client/config",
            "client/config",
            {"sdk_version": CLIENT_VERSION},
            patience=min(self.settings.retry_time, 10.0),
        )
        self._credentials.exchanging = False
        self.flags = await self.call(call, _read_flags)
        sk_key = self.settings.api_key.startswith("sk-")
        self._credentials.exchanging = self.flags.exchange_keys or sk_key
        try:
            await self._credentials.current()
        except GatewayError as error:
            if self.flags.exchange_keys or error.kind not in (Kind.NOT_FOUND, Kind.UNSUPPORTED):
                raise
            # An older service that takes such keys as they are.
            self._credentials.exchanging = False

    async def _exchange(self, api_key: str) -> str:
        call = Call("auth/token", "auth/token", {}, patience=min(self.settings.retry_time, 30.0))
        return await self.call(
            call, lambda answer: Fields(read_json(answer.body)).text("jwt"), key=api_key
        )

    async def call(self, call: Call, read: Callable[[Answer], T], *, key: str = "") -> T:
        """Send a request until it is answered, and read the answer with `read`, whose GatewayErrors
        mean that the answer makes no sense and is as good as lost. `key` is sent in place of the
        usual one. Raises GatewayError."""
        pauses = self.pauses(call.patience)
        arrived = False
        """Whether an earlier try may have arrived."""
        empty_400s = 0
        content = self._content(call)
        idempotency = f"stainless-python-retry-{uuid.uuid4()}"
        while True:
            asked: float | None = None
            patience: float | None = None
            try:
                answer = await self.once(call, content, idempotency, key=key)
            except NotSent as error:
                problem = f"cannot be sent: {error}"
            except AnswerLost as error:
                arrived, problem = True, f"was not answered: {error}"
            except GatewayError as error:  # there is no key to send it with
                if arrived and call.effect is not Effect.NONE:
                    raise outcome_unknown(
                        self.name, call.operation, str(error), look=call.look
                    ) from None
                raise
            else:
                if 200 <= answer.status < 300:
                    try:
                        return read(answer)
                    except GatewayError as error:
                        arrived, problem = True, f"was answered what makes no sense: {error}"
                else:
                    asked = retry_after(answer.headers)
                    problem = f"was answered {answer.status}"
                    if answer.status == 402:
                        if await pauses.billing():
                            continue
                        raise self._final(call, answer, arrived)
                    if answer.status == 400 and not answer.body:
                        empty_400s += 1
                    if not _again(answer) and not 0 < empty_400s <= EMPTY_400_TRIES:
                        raise self._final(call, answer, arrived)
                    if answer.status == 429:
                        patience = call.busy_patience
                    elif answer.status == 409:
                        patience = min(CONFLICT_TIME, self.settings.retry_time)
                    elif answer.status != 400:
                        arrived = True
                    if not await self._may_go_on(call, arrived, pauses, asked, patience):
                        raise self._final(call, answer, arrived)
                    continue
            if not await self._may_go_on(call, arrived, pauses, asked, patience):
                if arrived and call.effect is not Effect.NONE:
                    raise outcome_unknown(
                        self.name, call.operation, f"it {problem}", look=call.look
                    )
                raise unreachable(self.name, call.operation, problem)

    async def _may_go_on(
        self,
        call: Call,
        arrived: bool,
        pauses: Pauses,
        asked: float | None,
        patience: float | None,
    ) -> bool:
        if arrived and call.effect is Effect.ONCE:
            return False
        return await pauses.trouble(asked, patience=patience)

    def _final(self, call: Call, answer: Answer, arrived: bool) -> GatewayError:
        """The error of an answer that is the last one."""
        if arrived and call.effect is not Effect.NONE:
            # This answer says nothing about the try before it, or is no answer of the service.
            error = status_error(self.name, call.operation, answer)
            return outcome_unknown(self.name, call.operation, str(error), look=call.look)
        return status_error(self.name, call.operation, answer)

    def pauses(self, patience: float | None = None) -> Pauses:
        """The waiting of one request."""
        settings = self.settings
        billing = settings.billing_pause
        if self.flags.billing_pause is not None:
            billing = min(billing, self.flags.billing_pause)
        return Pauses(settings.retry_time if patience is None else patience, billing)

    async def once(
        self, call: Call, content: bytes | None = None, idempotency: str = "", *, key: str = ""
    ) -> Answer:
        """Send a request once, or once more with another key if the first is refused. Any status
        is an answer. Raises NotSent, AnswerLost, and GatewayError if no key is to be had."""
        if content is None:
            content = self._content(call)
        used = key or await self._credentials.current()
        answer = await self._send(call, content, idempotency, used)
        if answer.status == 401 and not key and self._credentials.refused(used):
            answer = await self._send(call, content, idempotency, await self._credentials.current())
        return answer

    async def _send(self, call: Call, content: bytes, idempotency: str, key: str) -> Answer:
        within = call.within or self.settings.request_timeout
        headers = {
            "x-api-key": key,
            "accept": call.accept,
            "user-agent": f"Tinkergate AsyncTinker/Python {CLIENT_VERSION}",
            "x-stainless-package-version": CLIENT_VERSION,
            "x-stainless-read-timeout": f"{within:g}",
            **(call.headers or {}),
        }
        if call.body is not None:
            headers["content-type"] = PROTOBUF if isinstance(call.body, bytes) else JSON
            if call.compress:
                headers["content-encoding"] = "zstd"
        if idempotency and call.method != "GET":
            headers.setdefault("x-idempotency-key", idempotency)
        return await self._client.send(
            call.method,
            self._root + call.path,
            headers=headers,
            content=content,
            within=within,
            max_bytes=self.settings.max_answer_bytes,
        )

    @staticmethod
    def _content(call: Call) -> bytes:
        if call.body is None:
            return b""
        content = call.body if isinstance(call.body, bytes) else write_json(call.body)
        return zstandard.compress(content) if call.compress else content

    async def quietly(self, call: Call) -> bool:
        """Send a request whose failure matters to nobody, once. Whether it succeeded."""
        try:
            answer = await self.once(call)
        except (NotSent, AnswerLost, GatewayError) as error:
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


def _again(answer: Answer) -> bool:
    """Whether a request that was answered so may succeed later (wire section 1.5)."""
    told = answer.headers.get("x-should-retry", "")
    if told in ("true", "false"):
        return told == "true"
    return answer.status in (409, 429) or answer.status in _MAYBE_LATER or answer.status > 504


def _read_flags(answer: Answer) -> Flags:
    fields = Fields(read_json(answer.body))
    return Flags(
        exchange_keys=fields.flag("pjwt_auth_enabled"),
        compress_training=fields.flag("proto_compress_fwdbwd"),
        billing_pause=fields.optional_number("billing_exception_max_pause_duration_sec"),
    )


def nothing(answer: Answer) -> None:
    """Reads nothing: any answer will do."""
