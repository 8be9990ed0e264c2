"""One call from its arrival to its line in the request log.

Lines are those of the gRPC door: `method` is the verb and the path, `code` the status. Queries are
not logged: they may hold signatures.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from email.utils import formatdate

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.calls import internal_error, refusal_facts, request_id
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.telemetry import log_event

Render = Callable[[GatewayError, str], Response]
"""How a dialect tells a failure, given the id of the request."""

CLIENT_GONE = 499
"""The status that is logged where nobody was left to be answered."""

MAX_LOGGED_PATH = 200

_logger = logging.getLogger("tinkergate.request")


class Calls:
    """Surrounds the app of a dialect: gives calls their id, tells failures by `render`, and logs
    outcomes. Calls that succeed on a path that ends with one of `quiet` are logged at debug level,
    as are those that the app says to be `quiet` in `scope["state"]`.

    What the app finds in `scope["state"]`: `request_id`, and of the settings `max_body_bytes` and
    `pause_limit`, the most seconds between the pieces of a body.
    """

    def __init__(
        self, app: ASGIApp, render: Render, settings: HttpSettings, *, quiet: tuple[str, ...]
    ) -> None:
        self._app = app
        self._render = render
        self._settings = settings
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            return
        call = _Call(scope, receive, send)
        scope["state"] = {
            "request_id": call.id,
            "max_body_bytes": self._settings.max_body_bytes,
            "pause_limit": self._settings.head_timeout,
        }
        failure: BaseException | None = None
        facts: dict[str, object] = {}
        level = logging.DEBUG if scope["path"].endswith(self._quiet) else logging.INFO
        try:
            await self._app(scope, call.receive, call.send)
            if scope["state"].get("quiet"):
                level = logging.DEBUG
        except GatewayError as error:
            level, facts = refusal_facts(error)
            await call.answer(self._render(error, call.id))
        except HTTPException as error:
            level = logging.INFO
            body = {"detail": error.detail, "request_id": call.id}
            await call.answer(JSONResponse(body, error.status_code, error.headers))
        except ClientDisconnect:
            level, call.status = logging.INFO, CLIENT_GONE
        except asyncio.CancelledError:
            # The door closes, and this call took longer than its grace.
            level = logging.INFO
            await call.answer(self._render(_closing(), call.id))
        except Exception as error:
            level, failure = logging.ERROR, error
            facts = {"error_id": secrets.token_hex(8)}
            await call.answer(self._render(internal_error(str(facts["error_id"])), call.id))
        if call.status >= 500 and level < logging.WARNING:
            level = logging.WARNING
        call.log(level, facts, failure)


class _Call:
    """What is counted of a call."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._begin = time.perf_counter()
        self._request_bytes = 0
        self._response_bytes = 0
        self.status = 0
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        self.id = request_id(None if sent is None else sent.decode("latin-1"))
        # It goes back in a header, which holds no more than ASCII.
        if not self.id.isascii():
            self.id = request_id(None)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._request_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"date", formatdate(usegmt=True).encode()),
                (b"x-request-id", self.id.encode()),
            ]
        elif message["type"] == "http.response.body":
            self._response_bytes += len(message.get("body", b""))
        await self._send(message)

    async def answer(self, response: Response) -> None:
        """Send a response, unless another was begun: then all that can be done is to break the
        connection, which the server does for an answer that is cut short."""
        if self.status == 0:
            await response(self._scope, self.receive, self.send)

    def log(self, level: int, facts: dict[str, object], error: BaseException | None) -> None:
        if not _logger.isEnabledFor(level):
            return
        told = {
            "method": f"{self._scope['method']} {self._scope['path'][:MAX_LOGGED_PATH]}",
            "code": self.status,
            "ms": round((time.perf_counter() - self._begin) * 1e3, 3),
            "request_bytes": self._request_bytes,
            "response_bytes": self._response_bytes,
            "request_id": self.id,
            **facts,
        }
        log_event(_logger, level, "call", told, error)


def _closing() -> GatewayError:
    return GatewayError(
        Kind.UNAVAILABLE,
        ErrorReason.ERROR_REASON_SHUTTING_DOWN,
        "the gateway is shutting down",
        retry_after=1.0,
    )
