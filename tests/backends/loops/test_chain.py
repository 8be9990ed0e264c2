"""Everything a backend does, by way of a second gateway that is Loops to it: the numbers are those
of the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from local_backend import BASE, MODEL, batch, chunks, run, sample, score, step
from loops_upstream import LoopsUpstream, make
from tinker_upstream import fingerprint, logprobs_of, steps

from tinkergate.backends.base import LoadedState, SamplerReady, SamplerSpec
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.loops.backend import LoopsBackend
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.tensors import arrays_from_batched, batched_from_arrays, floats_from_bytes
from tinkergate.v1 import (
    AdamParams,
    Checkpoint,
    CheckpointType,
    LoadStateRequest,
    ModelInput,
    OptimStepRequest,
    SamplingParams,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    ScoreRequest,
)

PROMPT = [5, 6, 7, 8, 9]
ASKED: dict[str, Any] = {
    "prompt": ModelInput(chunks=chunks(PROMPT)),
    "num_samples": 3,
    "sampling_params": SamplingParams(max_tokens=6, seed=3, temperature=0.7),
    "prompt_logprobs": True,
    "topk_prompt_logprobs": 4,
}


def close(first: Any, second: Any) -> None:
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=0)


async def test_models_are_those_of_the_service(far: LoopsBackend) -> None:
    models = {model.name: model for model in await far.models()}
    assert BASE in models
    assert models[BASE].backend == "far"
    assert models[BASE].max_context_length == 512


async def test_a_model_is_made_as_asked(far: LoopsBackend) -> None:
    facts = await make(far)
    assert (facts.lora_config.rank, facts.lora_config.seed) == (4, 1)
    assert facts.lora_config.train_mlp
    assert not facts.lora_config.train_unembed
    assert facts.notes == ()


async def test_training_gives_the_numbers_of_the_engine(
    far: LoopsBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
    for seed in range(3):
        results = [await run(backend, batch(seed=seed)) for backend in (far, near)]
        close(logprobs_of(results[0]), logprobs_of(results[1]))
        close(results[0].metrics["loss:sum"], results[1].metrics["loss:sum"])
        for backend in (far, near):
            await run(backend, step())
    close(await fingerprint(far), await fingerprint(near))


async def test_the_defaults_of_the_optimizer_are_the_canon(
    far: LoopsBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
        await run(backend, batch())
        await run(backend, OptimStepRequest(model_id=MODEL, adam=AdamParams()))
    close(await fingerprint(far), await fingerprint(near))


async def test_operations_are_submitted_before_the_first_is_done(
    far: LoopsBackend, near: LocalBackend
) -> None:
    await make(far)
    submitted = []
    for seed in range(4):
        for request in (batch(seed=seed), step()):
            submitted.append(await far.submit(request, lambda: None))
    await asyncio.gather(*(submission.result for submission in submitted))
    await make(near)
    await steps(near, range(4))
    close(await fingerprint(far), await fingerprint(near))


async def test_a_saved_state_goes_on_with_its_optimizer_and_without(
    far: LoopsBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(2))
    saved = await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    await run(near, SaveStateRequest(model_id=MODEL, name="ck"))
    path = f"tinker://{MODEL}/weights/ck"
    assert saved.has_optimizer
    assert saved.upstream_path.startswith("bt://loops:")
    for number, optimizer in enumerate((True, False), 1):
        for backend in (far, near):
            model_id = f"s-1:train:{number}"
            facts = await make(backend, model_id, path, optimizer=optimizer)
            assert facts.lora_config.rank == 4
            assert facts.optimizer_steps == (2 if optimizer else 0)
            await steps(backend, range(5, 7), model_id)
        close(await fingerprint(far, model_id), await fingerprint(near, model_id))


async def test_load_state_goes_back(far: LoopsBackend) -> None:
    await make(far)
    await steps(far, range(1))
    before = await fingerprint(far)
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    await steps(far, range(1, 3))
    request = LoadStateRequest(
        model_id=MODEL, path=f"tinker://{MODEL}/weights/ck", with_optimizer=True
    )
    assert await run(far, request) == LoadedState(1)
    close(await fingerprint(far), before)


async def test_checkpoints_are_known_again_after_a_restart(
    upstream: LoopsUpstream, far: LoopsBackend
) -> None:
    await make(far)
    await steps(far, range(1))
    saved = await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    expected = await fingerprint(far)
    path = f"tinker://{MODEL}/weights/ck"
    known = Checkpoint(
        path=path,
        upstream_path=saved.upstream_path,
        base_model=BASE,
        lora_rank=4,
        type=CheckpointType.CHECKPOINT_TYPE_TRAINING,
    )
    again = upstream.backend()
    await again.start([known])
    await make(again, "s-9:train:0", path)
    close(await fingerprint(again, "s-9:train:0"), expected)
    await again.close()


async def test_sampling_gives_the_tokens_of_the_engine(
    far: LoopsBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(2))
        saving = SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0)
        assert isinstance(await run(backend, saving), SamplerReady)
        await steps(backend, range(2, 3))
    answers = [await sample(backend, sampler_id="s-1:sample:0", **ASKED) for backend in (far, near)]
    assert [s.tokens for s in answers[0].sequences] == [s.tokens for s in answers[1].sequences]
    for got, wanted in zip(answers[0].sequences, answers[1].sequences, strict=True):
        close(floats_from_bytes(got.logprobs), floats_from_bytes(wanted.logprobs))
        assert got.stop_reason == wanted.stop_reason
    close(*(floats_from_bytes(answer.prompt_logprobs) for answer in answers))
    assert answers[0].topk_prompt_logprobs == answers[1].topk_prompt_logprobs


async def test_a_sampler_stays_what_it_is_or_says_that_it_does_not(
    upstream: LoopsUpstream, far: LoopsBackend
) -> None:
    await make(far)
    await steps(far, range(1))
    await run(far, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
    before = await sample(far, sampler_id="s-1:sample:0", **ASKED)
    await steps(far, range(1, 3))
    await run(far, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=1))
    newer = await sample(far, sampler_id="s-1:sample:1", **ASKED)
    assert newer != before
    if upstream.capacity == "serverless":
        assert await sample(far, sampler_id="s-1:sample:0", **ASKED) == before
        return
    with pytest.raises(GatewayError, match="serves version 3") as raised:
        await sample(far, sampler_id="s-1:sample:0", **ASKED)
    assert raised.value.kind is Kind.PRECONDITION
    assert raised.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH


async def test_weights_that_were_loaded_are_sampled_and_not_those_that_were_served_before(
    far: LoopsBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(1))
        await run(backend, SaveStateRequest(model_id=MODEL, name="ck"))
        await steps(backend, range(1, 3))
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        path = f"tinker://{MODEL}/weights/ck"
        for number, optimizer in enumerate((True, False), 1):
            load = LoadStateRequest(model_id=MODEL, path=path, with_optimizer=optimizer)
            await run(backend, load)
            saving = SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=number)
            await run(backend, saving)
    for number in (1, 2):
        asked = {"sampler_id": f"s-1:sample:{number}", **ASKED}
        answers = [await sample(backend, **asked) for backend in (far, near)]
        close(*(floats_from_bytes(answer.prompt_logprobs) for answer in answers))


async def test_weights_before_the_first_step_are_those_of_the_base_model(
    far: LoopsBackend, near: LocalBackend
) -> None:
    await make(far)
    await run(far, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
    answer = await sample(far, sampler_id="s-1:sample:0", **ASKED)
    expected = await sample(near, base_model=BASE, **ASKED)
    close(*(floats_from_bytes(each.prompt_logprobs) for each in (answer, expected)))


async def test_a_checkpoint_is_sampled_from_by_path_and_by_sampler(
    upstream: LoopsUpstream, far: LoopsBackend, near: LocalBackend
) -> None:
    path = f"tinker://{MODEL}/sampler_weights/w"
    answers = []
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(2))
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="w"))
        await steps(backend, range(2, 4))
        await backend.create_sampler(SamplerSpec("s-1:sample:4", BASE, path))
        for source in ({"model_path": path}, {"model_path": path}, {"sampler_id": "s-1:sample:4"}):
            answers.append(await sample(backend, **source, **ASKED))
    tokens = [[sequence.tokens for sequence in answer.sequences] for answer in answers]
    assert all(each == tokens[0] for each in tokens)
    assert upstream.asked("/samplers") == 2


async def test_a_base_model_is_sampled_and_scored(far: LoopsBackend, near: LocalBackend) -> None:
    answers = [await sample(backend, base_model=BASE, **ASKED) for backend in (far, near)]
    assert [s.tokens for s in answers[0].sequences] == [s.tokens for s in answers[1].sequences]
    scores = [await score(backend, PROMPT, base_model=BASE) for backend in (far, near)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


async def test_many_sequences_are_scored_with_their_likeliest(
    far: LoopsBackend, near: LocalBackend
) -> None:
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(0, 512, size) for size in (1, 7, 30, 12)]
    request = ScoreRequest(base_model=BASE, tokens=batched_from_arrays(rows), topk=3)
    answers = [await backend.score(request) for backend in (far, near)]
    for name in ("logprobs", "topk_tokens", "topk_logprobs"):
        got, expected = (arrays_from_batched(getattr(answer, name)) for answer in answers)
        for row, wanted in zip(got, expected, strict=True):
            assert row.shape == wanted.shape
            np.testing.assert_allclose(row, wanted, rtol=1e-5)


async def test_unloading_leaves_samplers_and_then_nothing(
    upstream: LoopsUpstream, far: LoopsBackend
) -> None:
    await make(far)
    await steps(far, range(1))
    await run(far, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
    before = await sample(far, sampler_id="s-1:sample:0", **ASKED)
    await far.unload_model(MODEL)
    assert await sample(far, sampler_id="s-1:sample:0", **ASKED) == before
    assert upstream.asked("/deactivate") == 0
    await far.close_sampler("s-1:sample:0")
    await far.close()
    assert upstream.asked("/deactivate") == 1


async def test_files_of_a_checkpoint_are_read(far: LoopsBackend, near: LocalBackend) -> None:
    path = f"tinker://{MODEL}/sampler_weights/w"
    contents = []
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(1))
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="w"))
        files = await backend.checkpoint_files(path)
        held = {}
        for file in files:
            pieces = [piece async for piece in backend.read_checkpoint_file(path, file.name)]
            held[file.name] = b"".join(pieces)
            assert len(held[file.name]) == file.size_bytes
        rest = [piece async for piece in backend.read_checkpoint_file(path, file.name, 5)]
        assert b"".join(rest) == held[file.name][5:]
        contents.append(held)
    assert contents[0].keys() >= {"adapter_model.safetensors", "adapter_config.json"}
    weights = [held["adapter_model.safetensors"] for held in contents]
    assert weights[0] == weights[1]
