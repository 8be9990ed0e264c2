"""What surrounds every call: the key check, deadlines, the rendering of failures, the request log.

One interceptor does it all, because the parts need each other: a refused key is a failure to be
rendered, and a rendered failure is a line of the log. It takes over decoding and encoding too. So a
caller without a key costs no decoding, a message that cannot be read is told as such, and the log
knows the sizes without serialising anything twice.

The health service goes past it: probes are neither refused nor logged.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from tinkergate.ingress.grpc.call import Call, Context
from tinkergate.ingress.keys import ApiKeys

OPEN_METHODS = "/grpc.health.v1.Health/"
"""Methods under this prefix need no key, and are not logged."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # no generic at run time
    """Surrounds the handlers of all methods.

    `max_message_bytes` bounds answers (gRPC itself bounds requests). `default_deadline` is the time
    in seconds that a call of one message each way gets if its caller sets no deadline.
    """

    def __init__(
        self, keys: ApiKeys, *, max_message_bytes: int, default_deadline: float | None
    ) -> None:
        self._keys = keys
        self._max_message_bytes = max_message_bytes
        self._default_deadline = default_deadline
        # gRPC asks for the handler at every call.
        self._surrounded: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler with everything around it. None, gRPC's sign of an unknown method,
        stays None."""
        method = handler_call_details.method
        if (known := self._surrounded.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(OPEN_METHODS):
            return handler
        return self._surrounded.setdefault(method, self._surround(method, handler))

    def _surround(self, method: str, handler: Handler) -> Handler:
        decode, encode = handler.request_deserializer, handler.response_serializer
        assert decode is not None
        assert encode is not None
        # The published types of handlers are those of gRPC's threaded server.
        behaviour: Any = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        def begin(context: Context) -> Call:
            return Call(method, context, self._keys, decode, encode, self._max_message_bytes)

        async def unary_unary(raw: bytes, context: Context) -> bytes:
            async with begin(context) as call:
                work = behaviour(call.decode(raw), context)
                return call.encode(await call.bounded(work, self._default_deadline))

        async def stream_unary(pieces: AsyncIterator[bytes], context: Context) -> bytes:
            async with begin(context) as call:
                return call.encode(await behaviour(call.decode_all(pieces), context))

        async def unary_stream(raw: bytes, context: Context) -> AsyncIterator[bytes]:
            async with begin(context) as call:
                async for response in behaviour(call.decode(raw), context):
                    yield call.encode(response)

        async def stream_stream(
            pieces: AsyncIterator[bytes], context: Context
        ) -> AsyncIterator[bytes]:
            async with begin(context) as call:
                async for response in behaviour(call.decode_all(pieces), context):
                    yield call.encode(response)

        assert inspect.isasyncgenfunction(behaviour) == handler.response_streaming, method
        # Made without serializers, a handler gets and gives bytes.
        make: Any
        surrounded: Any
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                make, surrounded = grpc.unary_unary_rpc_method_handler, unary_unary
            case True, False:
                make, surrounded = grpc.stream_unary_rpc_method_handler, stream_unary
            case False, True:
                make, surrounded = grpc.unary_stream_rpc_method_handler, unary_stream
            case _:
                make, surrounded = grpc.stream_stream_rpc_method_handler, stream_stream
        result: Handler = make(surrounded)
        return result
