"""One call, tried again while that makes sense."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from typing import Generic, TypeVar

import grpc

from tinkergate_client._errors import GatewayUnreachable, TinkergateError, error_from_call

Request = TypeVar("Request")
Response = TypeVar("Response")

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0
# Answers of a gateway that cannot serve now and may soon.
_PASSING = ("SHUTTING_DOWN", "BACKEND_UNAVAILABLE")


class Patience:
    """How long to wait before a call is tried again, and when to give up.

    A full queue is waited for without end: the gateway lives and says when to come back. While no
    gateway answers, waits grow from 50 ms to 5 s, until `seconds` have passed in a row.
    """

    def __init__(self, seconds: float, *, wait_for_room: bool = True) -> None:
        self._seconds = seconds
        self._wait_for_room = wait_for_room
        self._since: float | None = None
        self._attempts = 0

    def delay_after(self, error: TinkergateError) -> float | None:
        """Seconds to wait before the next attempt; None if the failure is final."""
        if error.reason == "QUEUE_FULL":
            if not self._wait_for_room:
                return None
            self._since, self._attempts = None, 0
            return error.retry_after or _FIRST_DELAY
        if not isinstance(error, GatewayUnreachable) and error.reason not in _PASSING:
            return None
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= self._seconds:
            return None
        # Half of each delay is random, so that many clients do not come back at once.
        delay = min(_FIRST_DELAY * 2.0**self._attempts, _LONGEST_DELAY) * random.uniform(0.5, 1)
        self._attempts = min(self._attempts + 1, 16)
        return max(delay, error.retry_after or 0)


class Call(Generic[Request, Response]):
    """A call whose answer arrives in a future: no thread waits for it."""

    def __init__(
        self,
        rpc: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        metadata: tuple[tuple[str, str], ...],
        patience: Patience,
    ) -> None:
        self._rpc = rpc
        self._request = request
        self._timeout = timeout
        self._metadata = metadata
        self._patience = patience
        self._future: Future[Response] = Future()
        self._lock = threading.Lock()
        self._attempt: grpc.CallFuture[Response] | None = None

    def begin(self) -> Future[Response]:
        """Send the first attempt. The future ends with the answer or a TinkergateError."""
        self._future.add_done_callback(self._settled)
        self._send()
        return self._future

    def _send(self) -> None:
        with self._lock:
            if self._future.done():
                return
            try:
                attempt = self._rpc.future(
                    self._request, timeout=self._timeout, metadata=self._metadata
                )
            except ValueError:  # what grpc raises on a closed channel
                attempt = None
            self._attempt = attempt
        if attempt is None:
            self._finish(error=client_closed())
        else:
            attempt.add_done_callback(self._answered)  # type: ignore[arg-type]

    def _answered(self, attempt: grpc.CallFuture[Response]) -> None:
        try:
            self._finish(response=attempt.result())
            return
        except grpc.FutureCancelledError:
            self._finish(error=client_closed())
            return
        except grpc.RpcError as failure:
            error = error_from_call(failure)
        delay = self._patience.delay_after(error)
        if delay is None:
            self._finish(error=error)
            return
        again = threading.Timer(delay, self._send)
        again.daemon = True
        again.start()

    def _finish(
        self, *, response: Response | None = None, error: TinkergateError | None = None
    ) -> None:
        if not self._future.set_running_or_notify_cancel():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(response)  # type: ignore[arg-type]

    def _settled(self, future: Future[Response]) -> None:
        if future.cancelled():
            with self._lock:
                attempt = self._attempt
            if attempt is not None:
                attempt.cancel()  # type: ignore[no-untyped-call]


def client_closed() -> GatewayUnreachable:
    """What ends the calls of a client that was closed."""
    return GatewayUnreachable("this client is closed", code=grpc.StatusCode.CANCELLED)
