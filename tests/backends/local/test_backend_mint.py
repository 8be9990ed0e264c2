"""The embedded engine through the Backend protocol: what MinT adds."""

from __future__ import annotations

import numpy as np
import pytest
from local_backend import BASE, MODEL, chunks, make_model, run, score, train

from tinkergate.backends.base import ModelSpec, SavedCheckpoint
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import arrays_from_batched, tensor_from_array
from tinkergate.v1 import (
    Checkpoint,
    Datum,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    InterpolateCheckpointsRequest,
    LoraConfig,
    ModelInput,
    OptimizerConfig,
    ReverseKlDatum,
    RolloutCorrection,
    SaveWeightsForSamplerRequest,
    VlaTrainStepRequest,
)

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def reverse_kl(reference: str, prompt: list[int] = TOKENS[:2]) -> ForwardBackwardReverseKlRequest:
    """The last rows of two datums, the reference's prompt being `prompt`."""
    weights = np.array([0, 0, 0, 1, 1, 2, 1], np.float32)
    datum = ReverseKlDatum(
        student_input=ModelInput(chunks=chunks(TOKENS[:-1])),
        reference_input=ModelInput(chunks=chunks(prompt + TOKENS[2:-1])),
        target_tokens=tensor_from_array(np.array(TOKENS[1:], np.int64)),
        weights=tensor_from_array(weights),
    )
    return ForwardBackwardReverseKlRequest(
        model_id=MODEL, reference_model_path=reference, data=[datum, datum]
    )


async def save(backend: LocalBackend, name: str) -> str:
    await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name=name))
    return f"tinker://{MODEL}/sampler_weights/{name}"


async def test_reverse_kl_to_the_base_model_and_to_a_checkpoint(backend: LocalBackend) -> None:
    await make_model(backend)
    fresh = await run(backend, reverse_kl(BASE))
    [losses] = [arrays_from_batched(r.fields["loss"]) for r in fresh.loss_fn_outputs]
    assert [loss.shape for loss in losses] == [(1,), (1,)]
    assert fresh.metrics["loss:sum"] == pytest.approx(0.0, abs=1e-6)
    await train(backend)
    path = await save(backend, "then")
    away = await run(backend, reverse_kl(BASE))
    same = await run(backend, reverse_kl(path))
    assert away.metrics["loss:sum"] > 1e-3
    assert same.metrics["loss:sum"] == pytest.approx(0.0, abs=1e-5)
    assert (await run(backend, reverse_kl(path, [7, 7, 7, 8]))).metrics["loss:sum"] > 1e-3
    [losses] = [arrays_from_batched(r.fields["loss"]) for r in away.loss_fn_outputs]
    assert sum(loss[0] for loss in losses) == pytest.approx(away.metrics["loss:sum"], rel=1e-5)


async def test_a_reference_that_is_not_there(backend: LocalBackend) -> None:
    await make_model(backend)
    for reference in (f"tinker://{MODEL}/weights/absent", "no-such-model"):
        with pytest.raises(GatewayError) as raised:
            await backend.submit(reverse_kl(reference), lambda: None)
        assert raised.value.kind is Kind.NOT_FOUND


async def test_interpolation_halfway_to_the_base_model(backend: LocalBackend) -> None:
    await make_model(backend, train_unembed=False)
    await train(backend)
    path = await save(backend, "a")
    target = "tinker://i-1:train:0/sampler_weights/mix"
    described = Checkpoint(path=target, base_model=BASE, model_id="i-1:train:0")
    described.create_time.FromSeconds(7)
    request = InterpolateCheckpointsRequest(source_paths=[path, path], coefficients=[0.75, 0.25])
    saved = await backend.interpolate_checkpoints(request, described)
    assert isinstance(saved, SavedCheckpoint)
    assert saved.lora_config is not None
    assert saved.lora_config.rank == 8
    whole = await score(backend, TOKENS, model_path=path)
    again = await score(backend, TOKENS, model_path=target)
    assert np.allclose(whole[1:], again[1:], atol=1e-5)

    nothing = "tinker://i-2:train:0/sampler_weights/none"
    request = InterpolateCheckpointsRequest(source_paths=[path], coefficients=[0.0])
    await backend.interpolate_checkpoints(request, Checkpoint(path=nothing, base_model=BASE))
    bare = await score(backend, TOKENS, base_model=BASE)
    assert np.allclose(bare[1:], (await score(backend, TOKENS, model_path=nothing))[1:], atol=1e-5)
    assert not np.allclose(bare[1:], whole[1:], atol=1e-2)
    listed = {checkpoint.path: checkpoint for checkpoint in await backend.checkpoints()}
    assert listed[target].lora_rank == 8
    assert listed[target].create_time.ToSeconds() == 7


async def test_a_rollout_correction_leaves_out_what_is_over_the_threshold(
    backend: LocalBackend,
) -> None:
    await backend.create_model(
        ModelSpec(
            MODEL,
            BASE,
            LoraConfig(rank=4, seed=1),
            OptimizerConfig(),
            rollout_correction=RolloutCorrection(threshold=1.1),
        )
    )
    inputs = {"target_tokens": tensor_from_array(np.array(TOKENS[1:], np.int64))}
    plain = Datum(model_input=chunks(TOKENS[:-1]), loss_fn_inputs=inputs)
    scored = await run(
        backend, ForwardRequest(model_id=MODEL, data=[plain], loss_fn="cross_entropy")
    )
    [own] = arrays_from_batched(scored.loss_fn_outputs[0].fields["logprobs"])
    data = []
    for off in (0.0, 0.05):
        more = {
            "logprobs": tensor_from_array((own - off).astype(np.float32)),
            "advantages": tensor_from_array(np.ones(len(own), np.float32)),
        }
        data.append(Datum(model_input=chunks(TOKENS[:-1]), loss_fn_inputs={**inputs, **more}))
    request = ForwardBackwardRequest(model_id=MODEL, data=data, loss_fn="importance_sampling")
    result = await run(backend, request)
    assert result.metrics["masked_datums:sum"] == 1
    assert result.metrics["masked_tokens:sum"] == 7
    assert result.metrics["loss:sum"] == pytest.approx(-7, abs=1e-3)


async def test_vision_language_action_models_are_refused(backend: LocalBackend) -> None:
    await make_model(backend)
    assert not backend.capabilities().vla
    with pytest.raises(GatewayError, match="VlaTrainStepRequest") as raised:
        await backend.submit(VlaTrainStepRequest(model_id=MODEL), lambda: None)
    assert raised.value.kind is Kind.UNSUPPORTED
