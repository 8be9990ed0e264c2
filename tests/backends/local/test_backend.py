"""The embedded engine through the Backend protocol."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkergate.backends.base import (
    Backend,
    LoadedState,
    ModelSpec,
    SampleEvents,
    SamplerReady,
    SamplerSpec,
    SavedCheckpoint,
    TrainingRequest,
)
from tinkergate.backends.local.backend import LocalBackend, ServedModel
from tinkergate.engine.engine import Engine
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import (
    array_from_tensor,
    arrays_from_batched,
    batched_from_arrays,
    floats_from_bytes,
    tensor_from_array,
    token_bytes,
    tokens_from_bytes,
)
from tinkergate.v1 import (
    AdamParams,
    Checkpoint,
    CheckpointSource,
    CheckpointType,
    Chunk,
    Datum,
    EncodedTextChunk,
    ErrorReason,
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    LoraConfig,
    ModelInput,
    OptimizerConfig,
    OptimizerParams,
    OptimStepRequest,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    SamplerWeightsKind,
    SamplingParams,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
    ScoreRequest,
    SparseCsr,
    StopReason,
    StopTokens,
    Tensor,
)

BASE = "micro"
MODEL = "s-1:train:0"
VOCAB = 512


@pytest.fixture
async def backend(micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    backend = make_backend(micro_model_dir, tmp_path)
    await backend.start()
    yield backend
    await backend.close()


def make_backend(model: Path, data_dir: Path, **settings: Any) -> LocalBackend:
    backend = LocalBackend(
        Engine({BASE: model}), [ServedModel(BASE, model, ("tiny",))], data_dir, **settings
    )
    checked: Backend = backend  # what mypy is to see
    assert checked is backend
    return backend


def chunks(tokens: Sequence[int]) -> list[Chunk]:
    return [Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))]


def datum(tokens: Sequence[int], weights: Sequence[float] | None = None) -> Datum:
    inputs = {"target_tokens": tensor_from_array(np.array(tokens[1:], np.int64))}
    if weights is not None:
        inputs["weights"] = tensor_from_array(np.array(weights, np.float32))
    return Datum(model_input=chunks(tokens[:-1]), loss_fn_inputs=inputs)


def batch(model_id: str = MODEL, seed: int = 0, count: int = 3) -> ForwardBackwardRequest:
    numbers = np.random.default_rng(seed)
    data = [
        datum(numbers.integers(0, VOCAB, numbers.integers(5, 20)).tolist()) for _ in range(count)
    ]
    return ForwardBackwardRequest(model_id=model_id, data=data, loss_fn="cross_entropy")


def step(model_id: str = MODEL) -> OptimStepRequest:
    return OptimStepRequest(model_id=model_id, adam=AdamParams(learning_rate=1e-2))


async def make_model(backend: LocalBackend, model_id: str = MODEL, **lora: Any) -> None:
    config = LoraConfig(**{"rank": 4, "seed": 1, **lora})
    await backend.create_model(ModelSpec(model_id, BASE, config, OptimizerConfig()))


async def run(backend: LocalBackend, request: TrainingRequest) -> Any:
    started: list[bool] = []
    submission = await backend.submit(request, lambda: started.append(True))
    result = await submission.result
    assert started == [True]
    return result


async def train(backend: LocalBackend, model_id: str = MODEL, steps: int = 2) -> None:
    for number in range(steps):
        await run(backend, batch(model_id, seed=number))
        await run(backend, step(model_id))


def ignore(*_: object) -> None:
    pass


async def sample(backend: LocalBackend, **fields: Any) -> SampleResponse:
    return await backend.sample(SampleRequest(**fields), SampleEvents(ignore, ignore))


async def score(
    backend: LocalBackend, tokens: Sequence[int], **source: Any
) -> np.ndarray[Any, Any]:
    request = ScoreRequest(tokens=batched_from_arrays([np.array(tokens, np.int64)]), **source)
    [logprobs] = arrays_from_batched((await backend.score(request)).logprobs)
    return logprobs


def tokens_of(response: SampleResponse) -> list[list[int]]:
    return [tokens_from_bytes(sequence.tokens).tolist() for sequence in response.sequences]


def drawing(count: int, seed: int = 3, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, seed=seed, stop_tokens=StopTokens(), **more)


async def test_what_it_says_of_itself(backend: LocalBackend) -> None:
    capabilities = backend.capabilities()
    assert [loss.name for loss in capabilities.losses] == ["cross_entropy"]
    assert capabilities.losses[0].required_inputs == ["target_tokens"]
    assert capabilities.losses[0].optional_inputs == ["weights"]
    assert list(capabilities.optimizers) == ["adamw"]
    assert not capabilities.image_input
    assert not capabilities.inflight_samplers
    [model] = await backend.models()
    assert (model.name, model.vocab_size, model.max_context_length) == (BASE, VOCAB, 512)
    assert list(model.aliases) == ["tiny"]


async def test_a_model_is_made_as_asked(backend: LocalBackend) -> None:
    lora = LoraConfig(rank=3, alpha=6, seed=11, train_unembed=False)
    facts = await backend.create_model(ModelSpec(MODEL, BASE, lora, OptimizerConfig()))
    assert facts.lora_config == LoraConfig(
        rank=3, alpha=6, seed=11, train_mlp=True, train_attn=True, train_unembed=False
    )
    assert (facts.vocab_size, facts.max_context_length) == (VOCAB, 512)
    assert facts.arch == "LlamaForCausalLM"
    drawn = [
        (await backend.create_model(ModelSpec(name, BASE, LoraConfig(), OptimizerConfig())))
        for name in ("s-1:train:1", "s-1:train:2")
    ]
    assert drawn[0].lora_config.rank == 32
    assert drawn[0].lora_config.seed != drawn[1].lora_config.seed


async def test_what_it_cannot_do_is_refused_by_name(backend: LocalBackend) -> None:
    with pytest.raises(GatewayError, match="dimuon") as caught:
        await backend.create_model(
            ModelSpec(MODEL, BASE, LoraConfig(), OptimizerConfig(type="dimuon"))
        )
    assert caught.value.kind is Kind.UNSUPPORTED
    await make_model(backend)
    inflight = SaveWeightsForSamplerRequest(
        model_id=MODEL, kind=SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_INFLIGHT
    )
    other = OptimStepRequest(model_id=MODEL, other=OptimizerParams(type="lion"))
    for request, feature in ((inflight, "follow training"), (other, "lion")):
        with pytest.raises(GatewayError, match=feature) as caught:
            await backend.submit(request, ignore)
        assert caught.value.kind is Kind.UNSUPPORTED


async def test_training_lowers_the_loss(backend: LocalBackend) -> None:
    await make_model(backend)
    losses = []
    for _ in range(8):
        output = await run(backend, batch())
        losses.append(output.metrics["loss:sum"])
        metrics = (await run(backend, step())).metrics
        assert metrics["grad_norm:mean"] > 0
    assert losses[-1] < losses[0]


async def test_logprobs_come_back_in_the_shape_of_the_targets(backend: LocalBackend) -> None:
    await make_model(backend)
    soft = Datum(
        model_input=chunks([5, 6, 7]),
        loss_fn_inputs={
            "target_tokens": tensor_from_array(np.arange(6).reshape(3, 2)),
            "weights": tensor_from_array(np.ones((3, 2), np.float32)),
        },
    )
    data = [datum([1, 2, 3]), datum([4, 5]), soft]
    request = ForwardRequest(model_id=MODEL, data=data, loss_fn="cross_entropy")
    output = await run(backend, request)
    assert output.loss_fn_output_type == "ArrayRecord"
    assert [record.num_datums for record in output.loss_fn_outputs] == [2, 1]
    arrays = [
        array
        for record in output.loss_fn_outputs
        for array in arrays_from_batched(record.fields["logprobs"])
    ]
    assert [array.shape for array in arrays] == [(2,), (1,), (3, 2)]
    total = -sum(float(array.sum()) for array in arrays)
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)
    scored = await score(backend, [1, 2, 3], base_model=BASE)
    np.testing.assert_allclose(arrays[0], scored[1:], atol=1e-4)  # B is 0 at first


async def test_operations_of_a_model_run_in_order_however_they_are_awaited(
    backend: LocalBackend,
) -> None:
    await make_model(backend, "s-1:train:1")
    await make_model(backend, "s-1:train:2")
    for number in range(3):
        await run(backend, batch("s-1:train:1", seed=number))
        await run(backend, step("s-1:train:1"))
    one_by_one = await run(backend, batch("s-1:train:1", seed=9))
    requests: list[TrainingRequest] = []
    for number in range(3):
        requests += [batch("s-1:train:2", seed=number), step("s-1:train:2")]
    requests.append(batch("s-1:train:2", seed=9))
    submissions = [await backend.submit(request, ignore) for request in requests]
    *_, at_once = await asyncio.gather(*(submission.result for submission in submissions))
    assert at_once == one_by_one


async def test_a_failed_operation_leaves_the_model_working(backend: LocalBackend) -> None:
    await make_model(backend)
    short = datum([1, 2, 3, 4])
    short.loss_fn_inputs["target_tokens"].CopyFrom(tensor_from_array(np.array([1, 2])))
    request = ForwardBackwardRequest(model_id=MODEL, data=[short], loss_fn="cross_entropy")
    with pytest.raises(GatewayError, match="target_tokens"):
        await run(backend, request)
    await train(backend)


async def test_cancelled_operations_have_no_effect(backend: LocalBackend) -> None:
    for name in ("s-1:train:1", "s-1:train:2"):
        await make_model(backend, name)
    first = await backend.submit(batch("s-1:train:1", count=40), ignore)
    second = await backend.submit(batch("s-1:train:1", seed=1), ignore)
    assert second.cancel()
    with pytest.raises(GatewayError) as caught:
        await second.result
    assert caught.value.kind is Kind.CANCELLED
    await first.result
    assert not first.cancel()
    await run(backend, step("s-1:train:1"))
    await run(backend, batch("s-1:train:2", count=40))
    await run(backend, step("s-1:train:2"))
    outputs = [await run(backend, batch(f"s-1:train:{n}", seed=5)) for n in (1, 2)]
    assert outputs[0] == outputs[1]


async def test_a_sampler_is_a_snapshot_to_the_bit(backend: LocalBackend) -> None:
    await make_model(backend)
    await train(backend)
    request = SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=4)
    assert isinstance(await run(backend, request), SamplerReady)
    sampler = "s-1:sample:4"
    before = await score(backend, range(40), sampler_id=sampler)
    drawn = await sample(
        backend,
        sampler_id=sampler,
        prompt=ModelInput(chunks=chunks([1, 2])),
        sampling_params=drawing(20),
    )
    await train(backend, steps=3)
    after = await score(backend, range(40), sampler_id=sampler)
    assert before.tobytes() == after.tobytes()
    again = await sample(
        backend,
        sampler_id=sampler,
        prompt=ModelInput(chunks=chunks([1, 2])),
        sampling_params=drawing(20),
    )
    assert drawn == again
    assert not np.allclose(before[1:], (await score(backend, range(40), base_model=BASE))[1:])
    await backend.close_sampler(sampler)
    with pytest.raises(GatewayError) as caught:
        await score(backend, range(40), sampler_id=sampler)
    assert caught.value.reason == ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND
    await backend.close_sampler("s-1:sample:99")


async def test_checkpoints_are_saved_found_loaded_and_removed(
    backend: LocalBackend, micro_model_dir: Path, tmp_path: Path
) -> None:
    await make_model(backend)
    await train(backend)
    saved = await run(
        backend, SaveStateRequest(model_id=MODEL, name="a", user_metadata={"note": "x"})
    )
    assert isinstance(saved, SavedCheckpoint)
    assert saved.has_optimizer
    named = SaveWeightsForSamplerRequest(model_id=MODEL, name="a")
    named.ttl.FromSeconds(3600)
    weights_only = await run(backend, named)
    assert not weights_only.has_optimizer
    assert weights_only.size_bytes < saved.size_bytes
    with pytest.raises(GatewayError) as caught:
        await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    assert caught.value.kind is Kind.CONFLICT

    # As another process finds them, beside what a killed save left.
    kind = tmp_path / "checkpoints" / "s-1%3Atrain%3A0" / "weights"
    leftover = kind / ".b.0123456789abcdef.partial"
    leftover.mkdir()
    (leftover / "adapter_config.json").write_text("{")
    other = make_backend(micro_model_dir, tmp_path)
    await other.start()
    assert not leftover.exists()
    found = {checkpoint.path: checkpoint for checkpoint in await other.checkpoints()}
    assert set(found) == {f"tinker://{MODEL}/weights/a", f"tinker://{MODEL}/sampler_weights/a"}
    training = found[f"tinker://{MODEL}/weights/a"]
    assert training.type == CheckpointType.CHECKPOINT_TYPE_TRAINING
    assert (training.base_model, training.lora_rank) == (BASE, 4)
    assert training.size_bytes == saved.size_bytes
    assert dict(training.user_metadata) == {"note": "x"}
    assert not training.HasField("expire_time")
    lasting = found[f"tinker://{MODEL}/sampler_weights/a"]
    assert lasting.expire_time.seconds - lasting.create_time.seconds == 3600

    await train(backend, steps=1)
    gone_on = await run(backend, batch(seed=9))
    facts = await other.create_model(
        ModelSpec(
            "s-2:train:0",
            BASE,
            LoraConfig(),
            OptimizerConfig(),
            checkpoint=CheckpointSource(path=training.path, with_optimizer=True),
        )
    )
    assert facts.optimizer_steps == 2
    assert facts.lora_config.seed == 1
    await train(other, "s-2:train:0", steps=1)
    resumed = await run(other, batch("s-2:train:0", seed=9))
    assert resumed == gone_on
    await other.close()

    for path in found:
        await backend.delete_checkpoint(path)
        await backend.delete_checkpoint(path)
    assert list(await backend.checkpoints()) == []


async def test_loading_a_state_into_a_model(backend: LocalBackend) -> None:
    await make_model(backend)
    await train(backend)
    path = f"tinker://{MODEL}/weights/a"
    await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    there = await run(backend, batch(seed=9))
    await train(backend)
    load = LoadStateRequest(model_id=MODEL, path=path, with_optimizer=True)
    assert await run(backend, load) == LoadedState(2)
    assert await run(backend, batch(seed=9)) == there
    load.with_optimizer = False
    assert await run(backend, load) == LoadedState(0)

    await make_model(backend, "s-1:train:1", alpha=8)
    with pytest.raises(GatewayError, match="alpha") as caught:
        await run(backend, LoadStateRequest(model_id="s-1:train:1", path=path))
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH
    with pytest.raises(GatewayError) as caught:
        await run(backend, LoadStateRequest(model_id=MODEL, path=f"tinker://{MODEL}/weights/no"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    await train(backend)


async def test_sampling_from_a_path_needs_no_sampler(micro_model_dir: Path, tmp_path: Path) -> None:
    backend = make_backend(micro_model_dir, tmp_path, snapshots_kept=1)
    await backend.start()
    await make_model(backend)
    paths = []
    for name in "ab":
        await train(backend, steps=1)
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name=name))
        paths.append(f"tinker://{MODEL}/sampler_weights/{name}")
    first = [await score(backend, range(20), model_path=path) for path in paths]
    assert not np.allclose(first[0][1:], first[1][1:])
    # More paths than are kept, at the same time.
    again = await asyncio.gather(
        *(score(backend, range(20), model_path=path) for path in paths * 3)
    )
    for index, scores in enumerate(again):
        assert scores.tobytes() == first[index % 2].tobytes()

    # A sampler of a path keeps its weights when the checkpoint is replaced or removed.
    await backend.create_sampler(SamplerSpec("s-1:sample:0", BASE, paths[0]))
    await train(backend, steps=1)
    await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="a", overwrite=True))
    replaced = await score(backend, range(20), model_path=paths[0])
    assert not np.allclose(replaced[1:], first[0][1:])
    await backend.delete_checkpoint(paths[0])
    kept = await score(backend, range(20), sampler_id="s-1:sample:0")
    assert kept.tobytes() == first[0].tobytes()
    with pytest.raises(GatewayError) as caught:
        await score(backend, range(20), model_path=paths[0])
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    await backend.close()


async def test_a_sample_answers_everything_that_was_asked(backend: LocalBackend) -> None:
    prompt = [9, 8, 7, 6, 5]
    targets = np.array([[1, 2], [3, -1], [-1, -1], [4, 5]])
    prompts: list[SampleResponse] = []
    sequences: list[tuple[int, SampledSequence]] = []
    request = SampleRequest(
        base_model=BASE,
        prompt=ModelInput(chunks=chunks(prompt[:2]) + chunks(prompt[2:])),
        num_samples=3,
        sampling_params=drawing(7, temperature=0.8),
        prompt_logprobs=True,
        topk_prompt_logprobs=4,
        topk_sample_logprobs=2,
        target_prompt_logprobs=tensor_from_array(targets),
        prompt_alt_tokens_k=3,
    )
    response = await backend.sample(
        request, SampleEvents(prompts.append, lambda index, s: sequences.append((index, s)))
    )
    assert [index for index, _ in sorted(sequences, key=lambda pair: pair[0])] == [0, 1, 2]
    for index, sequence in sequences:
        assert response.sequences[index] == sequence
        assert sequence.stop_reason == StopReason.STOP_REASON_LENGTH
        assert len(tokens_from_bytes(sequence.tokens)) == 7
        assert len(floats_from_bytes(sequence.logprobs)) == 7
        assert (sequence.topk_sampled_logprobs.k, sequence.topk_sampled_logprobs.length) == (2, 7)
    [told] = prompts
    assert len(told.sequences) == 0
    del response.sequences[:]
    assert response == told

    logprobs = floats_from_bytes(told.prompt_logprobs)
    assert np.isnan(logprobs[0])
    scored = await score(backend, prompt, base_model=BASE)
    np.testing.assert_allclose(logprobs[1:], scored[1:], atol=1e-4)
    table = told.topk_prompt_logprobs
    assert (table.k, table.length) == (4, 5)
    ids = tokens_from_bytes(table.token_ids).reshape(5, 4)
    values = floats_from_bytes(table.logprobs).reshape(5, 4)
    assert ids[0].tolist() == [0] * 4
    assert (values[0] == -99999.0).all()
    assert (np.diff(values[1:], axis=1) <= 0).all()
    answered = array_from_tensor(told.target_prompt_logprobs)
    assert answered.shape == targets.shape
    assert (answered[targets < 0] == 0).all()
    assert (answered[targets >= 0] < 0).all()
    assert array_from_tensor(told.prompt_alt_tokens.tokens).shape == (4, 3)
    assert (array_from_tensor(told.prompt_alt_tokens.logprobs) <= 0).all()


async def test_target_logprobs_come_in_the_layout_they_were_asked_in(
    backend: LocalBackend,
) -> None:
    dense = np.array([[-1, 7], [-1, -1], [3, 2]])
    sparse = Tensor(
        sparse_csr=SparseCsr(
            values=np.array([7, 3, 2]).tobytes(),
            crow_indices=np.array([0, 1, 1, 3]).tobytes(),
            col_indices=np.array([1, 0, 1]).tobytes(),
        ),
        dtype=tensor_from_array(dense).dtype,
        shape=[3, 2],
    )
    answers = []
    for asked in (tensor_from_array(dense), sparse):
        response = await sample(
            backend,
            base_model=BASE,
            prompt=ModelInput(chunks=chunks([1, 2, 3, 4])),
            sampling_params=drawing(1),
            target_prompt_logprobs=asked,
        )
        answers.append(response.target_prompt_logprobs)
    assert answers[1].sparse_csr.crow_indices == sparse.sparse_csr.crow_indices
    assert answers[1].sparse_csr.col_indices == sparse.sparse_csr.col_indices
    assert len(answers[1].sparse_csr.values) == 3 * 4
    np.testing.assert_array_equal(array_from_tensor(answers[1]), array_from_tensor(answers[0]))


async def test_scores_are_ragged_and_may_hold_the_likeliest(backend: LocalBackend) -> None:
    arrays = [np.arange(n, dtype=np.int64) for n in (3, 1, 6)]
    request = ScoreRequest(
        base_model=BASE, tokens=batched_from_arrays(arrays), temperature=0.5, topk=3
    )
    response = await backend.score(request)
    for index, array in enumerate(arrays):
        logprobs = arrays_from_batched(response.logprobs)[index]
        ids = arrays_from_batched(response.topk_tokens)[index]
        values = arrays_from_batched(response.topk_logprobs)[index]
        assert logprobs.shape == array.shape
        assert ids.dtype == np.int32
        assert ids.shape == values.shape == (len(array), 3)
        assert np.isnan(logprobs[0])
        assert (values[0] == -99999.0).all()
        assert (ids[0] == 0).all()
        assert (values[1:, 0] >= logprobs[1:]).all()
        assert (np.diff(values, axis=1) <= 0).all()


async def test_a_cancelled_sample_stops_the_work(backend: LocalBackend) -> None:
    told = asyncio.Event()
    request = SampleRequest(
        base_model=BASE,
        prompt=ModelInput(chunks=chunks([1])),
        sampling_params=drawing(500),
        prompt_logprobs=True,
    )
    task = asyncio.create_task(backend.sample(request, SampleEvents(lambda _: told.set(), ignore)))
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sampler = (await asyncio.wrap_future(backend._engine.bases.load(BASE))).sampler
    # A later call is drawn when the lane has let go of the first.
    await sample(
        backend, base_model=BASE, prompt=ModelInput(chunks=chunks([1])), sampling_params=drawing(1)
    )
    assert sampler._calls == {}
    assert sampler._sequences == []


async def test_a_model_that_is_unloaded_is_gone(backend: LocalBackend) -> None:
    await make_model(backend)
    running = await backend.submit(batch(count=10), ignore)
    unloading = asyncio.create_task(backend.unload_model(MODEL))
    await running.result  # what was submitted before ends first
    await unloading
    with pytest.raises(GatewayError) as caught:
        await backend.submit(step(), ignore)
    assert caught.value.reason == ErrorReason.ERROR_REASON_MODEL_NOT_READY
    await backend.unload_model(MODEL)
    await make_model(backend)


async def test_a_cancelled_making_leaves_nothing(backend: LocalBackend) -> None:
    await asyncio.wrap_future(backend._engine.bases.load(BASE))
    making = asyncio.create_task(make_model(backend))
    await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await make_model(backend)


async def test_a_peft_adapter_is_imported(backend: LocalBackend, tmp_path: Path) -> None:
    await make_model(backend)
    await train(backend)
    await run(backend, SaveStateRequest(model_id=MODEL, name="a"))
    source = tmp_path / "checkpoints" / "s-1%3Atrain%3A0" / "weights" / "a"
    files = {name: source / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    path = "tinker://i-1:train:0/weights/mine"
    size = await backend.import_checkpoint(Checkpoint(path=path, base_model=BASE), files)
    assert size > 0
    [imported] = [c for c in await backend.checkpoints() if c.path == path]
    assert imported.size_bytes == size
    original = await score(backend, range(30), model_path=f"tinker://{MODEL}/weights/a")
    again = await score(backend, range(30), model_path=path)
    assert original.tobytes() == again.tobytes()
    with pytest.raises(GatewayError, match="optimizer"):
        await backend.create_model(
            ModelSpec(
                "s-3:train:0",
                BASE,
                LoraConfig(),
                OptimizerConfig(),
                checkpoint=CheckpointSource(path=path, with_optimizer=True),
            )
        )

    config = json.loads(files["adapter_config.json"].read_text())
    odd = tmp_path / "adapter_config.json"
    odd.write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(GatewayError, match="use_dora"):
        await backend.import_checkpoint(
            Checkpoint(path=path + "2", base_model=BASE), {**files, "adapter_config.json": odd}
        )
    assert len(await backend.checkpoints()) == 2


async def test_a_base_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    backend = LocalBackend(Engine({"broken": folder}), [], tmp_path)
    await backend.start()
    for _ in range(2):
        with pytest.raises(GatewayError, match="broken"):
            await score(backend, [1, 2], base_model="broken")
    with pytest.raises(GatewayError) as caught:
        await score(backend, [1, 2], base_model="other")
    assert caught.value.reason == ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND
    await backend.close()
