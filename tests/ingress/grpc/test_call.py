"""A call whose deadline had passed before its handler was reached. gRPC itself ends almost all such
calls first, so over a socket this cannot be brought about at will."""

from __future__ import annotations

import grpc
import pytest

from tinkergate.ingress.grpc.call import Call
from tinkergate.ingress.keys import ApiKeys
from tinkergate.v1 import GetSessionRequest, GetSessionResponse


class LateContext:
    """What a call looks like that has `remaining` seconds left."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining
        self.status: grpc.Status | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float | None:
        return self._remaining

    async def abort_with_status(self, status: grpc.Status) -> None:
        self.status = status
        raise grpc.aio.AbortError


def call_in(context: LateContext) -> Call:
    return Call(
        "/a/B",
        context,  # type: ignore[arg-type]
        ApiKeys([]),
        GetSessionRequest.FromString,
        GetSessionResponse.SerializeToString,
        1 << 20,
    )


@pytest.mark.parametrize("remaining", [0.0, -3.0])
async def test_a_call_that_arrives_too_late_is_refused(remaining):
    context = LateContext(remaining)
    with pytest.raises(grpc.aio.AbortError):
        async with call_in(context):
            raise AssertionError("the handler must not run")
    assert context.status is not None
    assert context.status.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("remaining", [None, 0.001])
async def test_any_other_is_let_in(remaining):
    context = LateContext(remaining)
    async with call_in(context):
        pass
    assert context.status is None
