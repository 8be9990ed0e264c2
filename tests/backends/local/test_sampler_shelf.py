"""Samplers whose weights are not in memory all the time."""

import asyncio
from pathlib import Path

import pytest
from local_backend import (
    BASE,
    MODEL,
    chunks,
    drawing,
    make_backend,
    make_model,
    run,
    sample,
    score,
    tokens_of,
    train,
)

from tinkergate.backends.base import SamplerSpec
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ModelInput, SampleResponse, SaveWeightsForSamplerRequest

KEPT = 2
TOKENS = [5, 6, 7, 8, 9, 10]


async def freeze(backend: LocalBackend, number: int) -> str:
    await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=number))
    return f"s-1:sample:{number}"


async def greedy(backend: LocalBackend, sampler: str) -> SampleResponse:
    return await sample(
        backend,
        sampler_id=sampler,
        prompt=ModelInput(chunks=chunks(TOKENS)),
        num_samples=1,
        sampling_params=drawing(4),
    )


async def settle(backend: LocalBackend) -> None:
    """Wait for what the shelf does behind its callers' backs."""
    while backend._samplers._tasks:
        await asyncio.wait(backend._samplers._tasks)


async def adapters(backend: LocalBackend) -> int:
    """How many adapters are in memory, that of the model in training included."""
    loaded = await backend._loaded(BASE)
    counted = loaded.queue.call(lambda: len(loaded.adapters._adapters))
    return await asyncio.wrap_future(counted.future)


async def test_a_loop_that_makes_a_sampler_each_step_does_not_fill_the_memory(
    micro_model_dir: Path, tmp_path: Path
) -> None:
    backend = make_backend(micro_model_dir, tmp_path, snapshots_kept=KEPT)
    await backend.start()
    try:
        await make_model(backend)
        drawn, scored, samplers = [], [], []
        for number in range(5):
            await train(backend, steps=1)
            sampler = await freeze(backend, number)
            samplers.append(sampler)
            drawn.append(tokens_of(await greedy(backend, sampler)))
            scored.append((await score(backend, TOKENS, sampler_id=sampler)).tolist()[1:])
            await settle(backend)
            assert await adapters(backend) <= 1 + KEPT
        assert len({str(row) for row in scored}) == 5  # the weights did differ
        # All are what they were, to the bit, those on disk included, and asked for at once.
        again = await asyncio.gather(*(score(backend, TOKENS, sampler_id=s) for s in samplers))
        assert [row.tolist()[1:] for row in again] == scored
        for sampler, expected in zip(samplers, drawn, strict=True):
            assert tokens_of(await greedy(backend, sampler)) == expected
        await settle(backend)
        assert await adapters(backend) <= 1 + KEPT
        for sampler in samplers:
            await backend.close_sampler(sampler)
        await settle(backend)
        assert await adapters(backend) == 1
        assert list((tmp_path / "samplers").iterdir()) == []
        with pytest.raises(GatewayError) as caught:
            await score(backend, TOKENS, sampler_id=samplers[0])
        assert caught.value.kind == Kind.NOT_FOUND
    finally:
        await backend.close()
    assert not (tmp_path / "samplers").exists()


async def test_a_sampler_of_a_checkpoint_outlives_it_on_disk_too(
    micro_model_dir: Path, tmp_path: Path
) -> None:
    backend = make_backend(micro_model_dir, tmp_path, snapshots_kept=1)
    await backend.start()
    try:
        await make_model(backend)
        await train(backend, steps=1)
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="first"))
        path = f"tinker://{MODEL}/sampler_weights/first"
        await backend.create_sampler(SamplerSpec("s-1:sample:0", BASE, path))
        before = (await score(backend, TOKENS, sampler_id="s-1:sample:0")).tolist()[1:]
        await freeze(backend, 1)
        await freeze(backend, 2)
        await settle(backend)
        await backend.delete_checkpoint(path)
        after = (await score(backend, TOKENS, sampler_id="s-1:sample:0")).tolist()[1:]
        assert after == before
    finally:
        await backend.close()


async def test_weights_that_cannot_be_written_stay_in_memory(
    micro_model_dir: Path, tmp_path: Path
) -> None:
    backend = make_backend(micro_model_dir, tmp_path, snapshots_kept=1)
    await backend.start()
    try:
        (tmp_path / "samplers").write_text("in the way")
        await make_model(backend)
        samplers = [await freeze(backend, number) for number in range(3)]
        await settle(backend)
        for sampler in samplers:
            await score(backend, TOKENS, sampler_id=sampler)
    finally:
        await backend.close()


async def test_what_a_killed_process_left_is_cleared_up(
    micro_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "samplers" / "7").mkdir(parents=True)
    backend = make_backend(micro_model_dir, tmp_path)
    await backend.start()
    try:
        assert not (tmp_path / "samplers").exists()
    finally:
        await backend.close()
