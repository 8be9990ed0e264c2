"""The embedded engine through the Backend protocol: models and their training."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from local_backend import (
    BASE,
    MODEL,
    VOCAB,
    batch,
    chunks,
    datum,
    ignore,
    make_model,
    run,
    score,
    step,
    train,
)

from tinkergate.backends.base import ModelSpec, TrainingRequest
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.engine.engine import Engine
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import arrays_from_batched, tensor_from_array
from tinkergate.v1 import (
    Datum,
    ErrorReason,
    ForwardBackwardRequest,
    ForwardRequest,
    LoraConfig,
    LossCapability,
    LossSetting,
    OptimizerConfig,
    OptimizerParams,
    OptimStepRequest,
    SamplerWeightsKind,
    SaveWeightsForSamplerRequest,
)
from tinkergate_kernels.losses import LOSSES


async def test_what_it_says_of_itself(backend: LocalBackend) -> None:
    capabilities = backend.capabilities()
    assert [loss.name for loss in capabilities.losses] == list(LOSSES)
    assert capabilities.losses[0].required_inputs == ["target_tokens"]
    assert capabilities.losses[0].optional_inputs == ["weights"]
    losses = {loss.name: loss for loss in capabilities.losses}
    assert losses["ppo"] == LossCapability(
        name="ppo",
        required_inputs=["target_tokens", "logprobs", "advantages"],
        optional_inputs=["clip_low_threshold", "clip_high_threshold"],
        config_keys=["clip_low_threshold", "clip_high_threshold"],
        settings=[
            LossSetting(name="clip_low_threshold", default_value=0.8, minimum=0, maximum=1),
            LossSetting(name="clip_high_threshold", default_value=1.2, minimum=1),
        ],
        single_target=True,
    )
    assert [name for name, loss in losses.items() if loss.paired] == ["dpo"]
    assert [name for name, loss in losses.items() if not loss.single_target] == ["cross_entropy"]
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
