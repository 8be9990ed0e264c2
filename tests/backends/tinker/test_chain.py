"""Everything a backend does, by way of a second gateway: the numbers are those of the engine, to
the last bit."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from local_backend import (
    BASE,
    MODEL,
    VOCAB,
    batch,
    chunks,
    drawing,
    ignore,
    run,
    sample,
    score,
    step,
)
from tinker_upstream import Upstream, fingerprint, logprobs_of, make, steps

from tinkergate.backends.base import (
    ActionBackend,
    Backend,
    LoadedState,
    SampleEvents,
    SamplerReady,
    SamplerSpec,
    SavedCheckpoint,
)
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import arrays_from_batched, batched_from_arrays, floats_from_bytes
from tinkergate.v1 import (
    AdamParams,
    Checkpoint,
    CheckpointType,
    LoadStateRequest,
    ModelInput,
    OptimStepRequest,
    SampleRequest,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    ScoreRequest,
)

PROMPT = [5, 6, 7, 8, 9]


def test_it_is_a_backend(upstream: Upstream) -> None:
    backend: Backend = upstream.backend()
    acting: ActionBackend = upstream.backend()
    assert backend.name == acting.name == "far"  # type: ignore[attr-defined]


async def test_models_are_those_of_the_service(far: TinkerBackend) -> None:
    models = {model.name: model for model in await far.models()}
    assert set(models) == {BASE, "tiny"}
    for model in models.values():
        assert (model.backend, model.trainable, model.sampleable) == ("far", True, True)
        assert (model.max_context_length, model.vocab_size) == (512, 0)


async def test_models_that_the_settings_name_are_not_asked_for(upstream: Upstream) -> None:
    backend = upstream.backend(models=("one", "two"))
    assert [model.name for model in await backend.models()] == ["one", "two"]
    assert not upstream.proxy.seen
    await backend.close()


async def test_a_model_is_made_as_asked(far: TinkerBackend) -> None:
    facts = await make(far)
    assert facts.lora_config.rank == 4
    assert facts.lora_config.seed == 1
    assert facts.lora_config.train_unembed
    assert facts.lora_config.alpha == 32
    assert facts.arch == "LlamaForCausalLM"
    assert facts.tokenizer_id == BASE


async def test_training_gives_the_numbers_of_the_engine(
    far: TinkerBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
    for seed in range(3):
        results = [await run(backend, batch(seed=seed)) for backend in (far, near)]
        assert (logprobs_of(results[0]) == logprobs_of(results[1])).all()
        assert dict(results[0].metrics) == dict(results[1].metrics)
        stepped = [await run(backend, step()) for backend in (far, near)]
        assert dict(stepped[0].metrics) == dict(stepped[1].metrics)
    assert (await fingerprint(far) == await fingerprint(near)).all()


async def test_the_defaults_of_the_optimizer_are_the_canon(
    far: TinkerBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
        await run(backend, batch())
        await run(backend, OptimStepRequest(model_id=MODEL, adam=AdamParams()))
    assert (await fingerprint(far) == await fingerprint(near)).all()


async def test_operations_are_submitted_before_the_first_is_done(
    upstream: Upstream, far: TinkerBackend, near: LocalBackend
) -> None:
    if upstream.dialect == "mint":
        assert far.capabilities().pipeline_depth == 1
        return
    assert far.capabilities().pipeline_depth > 1
    await make(far)
    started: list[int] = []
    submitted = []
    for seed in range(4):
        for request in (batch(seed=seed), step()):
            number = len(submitted)
            submitted.append(
                await far.submit(request, lambda number=number: started.append(number))
            )  # type: ignore[misc]
    await asyncio.gather(*(submission.result for submission in submitted))
    assert sorted(started) == list(range(8))  # news of starts comes in any order
    await make(near)
    await steps(near, range(4))
    assert (await fingerprint(far) == await fingerprint(near)).all()


async def test_a_saved_state_goes_on_with_its_optimizer_and_without(
    far: TinkerBackend, near: LocalBackend
) -> None:
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(2))
    saved = await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    await run(near, SaveStateRequest(model_id=MODEL, name="ck"))
    path = f"tinker://{MODEL}/weights/ck"
    assert isinstance(saved, SavedCheckpoint)
    assert saved.has_optimizer
    assert saved.upstream_path.endswith("/weights/ck")
    assert saved.upstream_path != path
    for number, optimizer in enumerate((True, False), 1):
        for backend in (far, near):
            model_id = f"s-1:train:{number}"
            facts = await make(backend, model_id, path, optimizer=optimizer)
            assert facts.lora_config.rank == 4
            assert facts.optimizer_steps == (2 if optimizer else 0)
            await steps(backend, range(5, 7), model_id)
        assert (await fingerprint(far, model_id) == await fingerprint(near, model_id)).all()


async def test_load_state_goes_back(far: TinkerBackend) -> None:
    await make(far)
    await steps(far, range(1))
    before = await fingerprint(far)
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    await steps(far, range(1, 3))
    request = LoadStateRequest(
        model_id=MODEL, path=f"tinker://{MODEL}/weights/ck", with_optimizer=True
    )
    assert await run(far, request) == LoadedState(1)
    assert (await fingerprint(far) == before).all()


async def test_checkpoints_are_known_again_after_a_restart(
    upstream: Upstream, far: TinkerBackend
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
    assert (await fingerprint(again, "s-9:train:0") == expected).all()
    await again.close()


async def test_sampling_gives_the_tokens_of_the_engine(
    far: TinkerBackend, near: LocalBackend
) -> None:
    asked: dict[str, Any] = {
        "prompt": ModelInput(chunks=chunks(PROMPT)),
        "num_samples": 3,
        "sampling_params": drawing(6, temperature=0.7),
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 4,
    }
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(2))
        saving = SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0)
        assert isinstance(await run(backend, saving), SamplerReady)
        await steps(backend, range(2, 3))
    answers = [await sample(backend, sampler_id="s-1:sample:0", **asked) for backend in (far, near)]
    assert answers[0] == answers[1]
    assert answers[0].topk_prompt_logprobs.k == 4


async def test_a_checkpoint_is_sampled_from_by_path_and_by_sampler(
    upstream: Upstream, far: TinkerBackend, near: LocalBackend
) -> None:
    path = f"tinker://{MODEL}/sampler_weights/w"
    asked: dict[str, Any] = {
        "prompt": ModelInput(chunks=chunks(PROMPT)),
        "sampling_params": drawing(5),
    }
    answers = []
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(2))
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="w"))
        await backend.create_sampler(SamplerSpec("s-1:sample:4", BASE, path))
        for source in ({"model_path": path}, {"model_path": path}, {"sampler_id": "s-1:sample:4"}):
            answers.append(await sample(backend, **source, **asked))
    assert all(answer == answers[0] for answer in answers)
    assert upstream.asked("create_sampling_session") == 2


async def test_a_base_model_is_sampled_and_scored(far: TinkerBackend, near: LocalBackend) -> None:
    asked: dict[str, Any] = {
        "prompt": ModelInput(chunks=chunks(PROMPT)),
        "sampling_params": drawing(5),
    }
    asked["prompt_logprobs"] = True
    answers = [await sample(backend, base_model=BASE, **asked) for backend in (far, near)]
    assert answers[0] == answers[1]
    scores = [await score(backend, PROMPT, base_model=BASE) for backend in (far, near)]
    # The engine reads a prompt to sample from in other batches than texts to score.
    np.testing.assert_array_equal(scores[0], floats_from_bytes(answers[1].prompt_logprobs))
    np.testing.assert_allclose(*scores, rtol=1e-5)


async def test_many_sequences_are_scored_with_their_likeliest(
    far: TinkerBackend, near: LocalBackend
) -> None:
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(0, VOCAB, size) for size in (1, 7, 30, 12)]
    request = ScoreRequest(base_model=BASE, tokens=batched_from_arrays(rows), topk=3)
    answers = [await backend.score(request) for backend in (far, near)]
    for name in ("logprobs", "topk_tokens", "topk_logprobs"):
        got, expected = (arrays_from_batched(getattr(answer, name)) for answer in answers)
        for row, wanted in zip(got, expected, strict=True):
            assert row.shape == wanted.shape
            np.testing.assert_allclose(row, wanted, rtol=1e-5)


async def test_scoring_at_another_temperature_is_refused_unasked(
    upstream: Upstream, far: TinkerBackend
) -> None:
    request = ScoreRequest(
        base_model=BASE, tokens=batched_from_arrays([np.array(PROMPT)]), temperature=0.5
    )
    with pytest.raises(GatewayError, match="temperature other than 1") as raised:
        await far.score(request)
    assert raised.value.kind is Kind.UNSUPPORTED
    assert not upstream.asked("asample")


async def test_what_mint_does_not_have_is_refused_unasked(
    upstream: Upstream, far: TinkerBackend
) -> None:
    request = SampleRequest(
        base_model=BASE,
        prompt=ModelInput(chunks=chunks(PROMPT)),
        sampling_params=drawing(2),
        topk_sample_logprobs=2,
    )
    if upstream.dialect == "tinker":
        answer = await far.sample(request, SampleEvents(ignore, ignore))
        assert answer.sequences[0].topk_sampled_logprobs.k == 2
        return
    with pytest.raises(GatewayError, match="'far' does not support topk_sample_logprobs"):
        await far.sample(request, SampleEvents(ignore, ignore))
    assert not upstream.asked("asample")


async def test_an_operation_that_fails_there_is_told_and_the_next_runs(far: TinkerBackend) -> None:
    await make(far)
    before = await fingerprint(far)
    bad = batch()
    bad.data[0].loss_fn_inputs["target_tokens"].dense = b"\0" * 8
    bad.data[0].loss_fn_inputs["target_tokens"].shape[:] = [1]
    with pytest.raises(GatewayError, match="backend 'far': forward_backward of model") as raised:
        await run(far, bad)
    assert raised.value.kind is Kind.INVALID
    assert raised.value.backend == "far"
    assert raised.value.metadata["operation"] == f"forward_backward of model {MODEL}"
    assert (await fingerprint(far) == before).all()


async def test_unloading_ends_what_runs_first(upstream: Upstream, far: TinkerBackend) -> None:
    await make(far)
    submission = await far.submit(batch(count=30), ignore)
    await far.unload_model(MODEL)
    assert (await submission.result).metrics["loss:sum"] > 0  # type: ignore[union-attr]
    await far.unload_model(MODEL)
    with pytest.raises(GatewayError, match="has no model"):
        await far.submit(batch(), ignore)
    if upstream.dialect == "tinker":
        assert upstream.asked("unload_model") == 1


async def test_the_key_of_mint_goes_to_the_exchange_alone(
    upstream: Upstream, far: TinkerBackend
) -> None:
    await make(far)
    assert upstream.asked("auth/token") == (upstream.dialect == "mint")
