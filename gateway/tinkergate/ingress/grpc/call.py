"""One call from its arrival to its line in the request log."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from tinkergate.errors import GatewayError, Kind
from tinkergate.ingress.calls import internal_error, refusal_facts, request_id
from tinkergate.ingress.grpc.errors import to_status
from tinkergate.ingress.keys import ApiKeys
from tinkergate.telemetry import log_event
from tinkergate.v1 import ErrorReason

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Answer = TypeVar("Answer")

_logger = logging.getLogger("tinkergate.request")
_QUIET = frozenset(
    {
        "/tinkergate.v1.SessionService/HeartbeatSession",
        "/tinkergate.v1.OperationService/WaitOperation",
    }
)
"""Clients repeat these all the time: they are logged at debug level while they succeed."""

_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class Call:
    """What a handler runs in: `async with` admits the caller or refuses it, renders whatever the
    handler raises, and logs the outcome."""

    def __init__(
        self,
        method: str,
        context: Context,
        keys: ApiKeys,
        decode: Callable[[bytes], Message],
        encode: Callable[[Message], bytes],
        max_message_bytes: int,
    ) -> None:
        self._method = method
        self._context = context
        self._keys = keys
        self._decode = decode
        self._encode = encode
        self._max_message_bytes = max_message_bytes
        self._begin = time.perf_counter()
        self._request_bytes = 0
        self._response_bytes = 0
        self._request_id = ""

    async def __aenter__(self) -> Call:
        try:
            metadata = tuple(self._context.invocation_metadata() or ())
            self._request_id = _request_id(metadata)
            self._keys.check(metadata)
            remaining = self._context.time_remaining()
            if remaining is not None and remaining <= 0:
                raise _too_late("the call's deadline had passed when it arrived")
        except GatewayError as error:
            await self._refuse(error)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._log(logging.DEBUG if self._method in _QUIET else logging.INFO, "OK", {})
        elif isinstance(error, GatewayError):
            await self._refuse(error)
        elif not isinstance(error, Exception):
            # Cancelled: the caller went away, or its deadline passed, and nobody is left to be
            # answered. Whatever else is no Exception ends the process.
            self._log(logging.INFO, "CANCELLED", {})
        elif isinstance(error, grpc.aio.AbortError):
            # A handler of a library (reflection) has answered for itself.
            self._log(logging.INFO, _CODE_NAMES.get(_code_of(self._context), "UNKNOWN"), {})
        else:
            await self._fail(error)

    def decode(self, raw: bytes) -> Message:
        """A message of the caller."""
        self._request_bytes += len(raw)
        try:
            return self._decode(raw)
        except DecodeError:
            raise GatewayError(
                Kind.INVALID,
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                f"the message is not one of the contract: {len(raw)} bytes that do not decode as "
                f"the request of {self._method}",
            ) from None

    async def decode_all(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        """The messages of a caller that streams them."""
        async for raw in pieces:
            yield self.decode(raw)

    def encode(self, response: Message) -> bytes:
        """An answer as bytes. gRPC would name neither the size nor the bound."""
        raw = self._encode(response)
        if len(raw) > self._max_message_bytes:
            raise GatewayError(
                Kind.EXHAUSTED,
                ErrorReason.ERROR_REASON_TOO_LARGE,
                f"the answer has {len(raw)} bytes, more than the {self._max_message_bytes} of a "
                "message: ask for less at once",
                metadata={"size": str(len(raw)), "limit": str(self._max_message_bytes)},
            )
        self._response_bytes += len(raw)
        return raw

    async def bounded(self, work: Awaitable[Answer], seconds: float | None) -> Answer:
        """The outcome of `work`, which gets so much time if the caller set no deadline. With one,
        gRPC cancels the call."""
        if seconds is None or self._context.time_remaining() is not None:
            return await work
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                return await work
        except TimeoutError:
            if not scope.expired():
                raise
            raise _too_late(
                f"the call took longer than the {seconds:g} s that a call without a deadline gets: "
                "set a deadline"
            ) from None

    async def _refuse(self, error: GatewayError) -> NoReturn:
        """Answer a failure that callers may know of."""
        level, facts = refusal_facts(error)
        self._log(level, _CODE_NAMES[error.code], facts)
        await self._abort(error)

    async def _fail(self, error: Exception) -> NoReturn:
        """Answer a fault of ours. The traceback is for the log alone."""
        error_id = secrets.token_hex(8)
        self._log(logging.ERROR, "INTERNAL", {"error_id": error_id}, error)
        await self._abort(internal_error(error_id))

    async def _abort(self, error: GatewayError) -> NoReturn:
        status = to_status(error, {"request_id": self._request_id})
        await self._context.abort_with_status(rpc_status.to_status(status))  # type: ignore[attr-defined]  # the stubs lack it
        raise AssertionError("abort_with_status raises")

    def _log(
        self,
        level: int,
        code: str,
        facts: dict[str, object],
        error: BaseException | None = None,
    ) -> None:
        if not _logger.isEnabledFor(level):
            return
        told = {
            "method": self._method,
            "code": code,
            "ms": round((time.perf_counter() - self._begin) * 1e3, 3),
            "request_bytes": self._request_bytes,
            "response_bytes": self._response_bytes,
            "request_id": self._request_id,
            **facts,
        }
        log_event(_logger, level, "call", told, error)


def _too_late(message: str) -> GatewayError:
    return GatewayError(Kind.DEADLINE, ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, message)


def _request_id(metadata: tuple[tuple[str, str | bytes], ...]) -> str:
    for name, value in metadata:
        if name == "x-request-id" and isinstance(value, str):
            return request_id(value)
    return request_id(None)


def _code_of(context: Context) -> int:
    code: Any = context.code()
    return code if isinstance(code, int) else code.value[0]
