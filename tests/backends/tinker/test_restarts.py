"""A gateway that is started again knows its checkpoints at the service: by what name they are kept
there, and how many steps are in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from local_backend import BASE, batch, step
from tinker_upstream import Upstream

from tinkergate.core.gateway import Gateway
from tinkergate.store import Store
from tinkergate.tensors import batched_from_arrays
from tinkergate.v1 import (
    Checkpoint,
    CheckpointSource,
    CopyCheckpointRequest,
    CreateModelRequest,
    CreateSessionRequest,
    DeleteCheckpointRequest,
    GetModelRequest,
    ListCheckpointsRequest,
    LoadStateRequest,
    LoraConfig,
    Operation,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    ScoreRequest,
    WaitOperationRequest,
)


@asynccontextmanager
async def running(upstream: Upstream, store: Path) -> AsyncIterator[Gateway]:
    """A gateway in front of the service, until it is stopped."""
    gateway = Gateway([upstream.backend()], Store(f"sqlite:///{store}"))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close(1)


async def done(gateway: Gateway, operation: Operation) -> Any:
    """An operation that has succeeded."""
    wait = WaitOperationRequest(name=operation.name)
    wait.timeout.FromSeconds(60)
    ended = (await gateway.operations.wait(wait)).operation
    assert not ended.HasField("error"), ended.error
    return ended


async def model(gateway: Gateway, **source: Any) -> str:
    """A new model of a new session."""
    session = (await gateway.sessions.create(CreateSessionRequest())).session.session_id
    asked = CreateModelRequest(session_id=session, **source)
    return str((await done(gateway, await gateway.models.create(asked))).create_model.model_id)


async def trained(gateway: Gateway, model_id: str, seeds: range) -> list[float]:
    """The losses of some steps."""
    losses = []
    for seed in seeds:
        ended = await done(gateway, await gateway.training.submit(batch(model_id, seed=seed)))
        losses.append(ended.forward_backward.metrics["loss:sum"])
        await done(gateway, await gateway.training.submit(step(model_id)))
    return losses


async def steps_of(gateway: Gateway, model_id: str) -> int:
    return (await gateway.models.get(GetModelRequest(model_id=model_id))).model.optimizer_steps


async def score(gateway: Gateway, path: str) -> bytes:
    """The logprobs of a text under a checkpoint's weights."""
    tokens = batched_from_arrays([np.arange(5, 15)])
    answer = await gateway.scoring.score(ScoreRequest(model_path=path, tokens=tokens))
    return answer.logprobs.data


async def listed(gateway: Gateway) -> dict[str, Checkpoint]:
    told = (await gateway.checkpoints.list(ListCheckpointsRequest())).checkpoints
    return {checkpoint.path: checkpoint for checkpoint in told}


async def test_what_was_saved_is_gone_on_with_after_a_restart(
    upstream: Upstream, tmp_path: Path
) -> None:
    store = tmp_path / "front.db"
    async with running(upstream, store) as gateway:
        first = await model(gateway, base_model=BASE, lora_config=LoraConfig(rank=4, seed=1))
        await trained(gateway, first, range(2))
        save: Any = SaveStateRequest(model_id=first, name="middle")
        path = (await done(gateway, await gateway.training.submit(save))).save_state.path
        save = SaveWeightsForSamplerRequest(model_id=first, name="kept")
        saved = await done(gateway, await gateway.training.submit(save))
        sampler_path = saved.save_weights_for_sampler.path
        scored = await score(gateway, sampler_path)
        losses = await trained(gateway, first, range(2, 4))
        before = await listed(gateway)

    async with running(upstream, store) as gateway:
        assert await listed(gateway) == before
        assert set(before) == {path, sampler_path}
        assert {held.backend for held in before.values()} == {"far"}
        # MinT's own names differ in the scheme; the second gateway has names of its own besides.
        assert all(held.upstream_path not in ("", held.path) for held in before.values())
        assert await score(gateway, sampler_path) == scored

        source = CheckpointSource(path=path, with_optimizer=True)
        resumed = await model(gateway, checkpoint=source)
        assert await steps_of(gateway, resumed) == 2
        assert await trained(gateway, resumed, range(2, 4)) == losses
        assert await steps_of(gateway, resumed) == 4

        for with_optimizer, steps in ((True, 2), (False, 0)):
            load = LoadStateRequest(model_id=resumed, path=path, with_optimizer=with_optimizer)
            ended = await done(gateway, await gateway.training.submit(load))
            assert ended.load_state.optimizer_steps == steps
            assert await steps_of(gateway, resumed) == steps

        held = path
        if upstream.dialect == "tinker":
            copied = await gateway.checkpoint_copies.copy(CopyCheckpointRequest(path=path))
            held = copied.checkpoint.path

    async with running(upstream, store) as gateway:
        if held != path:  # what the copy holds is known without the original
            await gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
        source = CheckpointSource(path=held, with_optimizer=True)
        resumed = await model(gateway, checkpoint=source)
        assert await steps_of(gateway, resumed) == 2
        assert await trained(gateway, resumed, range(2, 4)) == losses
