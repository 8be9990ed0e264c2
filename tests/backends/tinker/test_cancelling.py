"""What a caller wants no more is not worked on at the service either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from local_backend import BASE, chunks, drawing
from tinker_upstream import Upstream

from tinkergate.core.gateway import Gateway
from tinkergate.core.sample_futures import SampleFuture
from tinkergate.errors import GatewayError, Kind
from tinkergate.store import Store
from tinkergate.v1 import (
    CreateSamplerRequest,
    CreateSessionRequest,
    FinishSessionRequest,
    ModelInput,
    SampleRequest,
)

TOKENS = {"tinker": 400, "mint": 40}
"""Enough to be drawing for a while. MinT draws to the end."""


@pytest.fixture
async def gateway(upstream: Upstream, tmp_path: Any) -> AsyncIterator[Gateway]:
    """A gateway in front of the service."""
    gateway = Gateway([upstream.backend()], Store(f"sqlite:///{tmp_path}/front.db"))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close(0)


async def sampler(gateway: Gateway) -> tuple[str, str]:
    """A session and a sampler of it."""
    session = (await gateway.sessions.create(CreateSessionRequest())).session.session_id
    created = await gateway.samplers.create(
        CreateSamplerRequest(session_id=session, base_model=BASE)
    )
    return session, created.sampler.sampler_id


def drawn(sampler_id: str, seq_id: int, count: int) -> SampleRequest:
    return SampleRequest(
        sampler_id=sampler_id,
        seq_id=seq_id,
        prompt=ModelInput(chunks=chunks([5, 9, 14])),
        sampling_params=drawing(count),
        num_samples=4,
    )


async def until(is_met: Any) -> None:
    while not is_met():  # noqa: ASYNC110 - what is waited for is a request to another server
        await asyncio.sleep(0.01)


def upstream_calls(upstream: Upstream) -> list[SampleFuture]:
    return list(upstream.gateway.sample_futures._futures.values())


def polls(upstream: Upstream) -> int:
    return sum(seen.path == "/api/v1/retrieve_future" for seen in upstream.proxy.seen)


async def begin(gateway: Gateway, upstream: Upstream, sampler_id: str) -> SampleFuture:
    """A long call that the service works on, and that is asked after."""
    before = polls(upstream)
    future = await gateway.sample_futures.submit(drawn(sampler_id, 0, TOKENS[upstream.dialect]))
    await until(lambda: polls(upstream) > before)
    return future


async def test_a_call_that_is_given_up_is_cancelled_there(
    gateway: Gateway, upstream: Upstream
) -> None:
    _, sampler_id = await sampler(gateway)
    future = await begin(gateway, upstream, sampler_id)
    [call] = upstream_calls(upstream)
    gateway.sample_futures.cancel(future.name)
    with pytest.raises(GatewayError) as raised:
        await gateway.sample_futures.wait(future.name, 30)
    assert raised.value.kind is Kind.CANCELLED
    await call.call.ended()
    if upstream.dialect == "mint":  # which has no way to cancel
        assert call.call.response is not None
        assert upstream.asked("cancel_future") == 0
    else:
        assert call.call.error is not None
        assert call.call.error.kind is Kind.CANCELLED
        await until(lambda: upstream.asked("cancel_future") == 1)
    # The sampler goes on.
    other = await gateway.sample_futures.submit(drawn(sampler_id, 1, 2))
    answer = await gateway.sample_futures.wait(other.name, 30)
    assert answer is not None
    assert len(answer.sequences) == 4


@pytest.mark.parametrize("upstream", ["tinker"], indirect=True)
async def test_the_calls_of_a_session_that_ends_are_cancelled_there(
    gateway: Gateway, upstream: Upstream
) -> None:
    session, sampler_id = await sampler(gateway)
    await begin(gateway, upstream, sampler_id)
    [call] = upstream_calls(upstream)
    await gateway.sessions.finish(FinishSessionRequest(session_id=session))
    await call.call.ended()
    assert call.call.error is not None
    assert call.call.error.kind is Kind.CANCELLED
