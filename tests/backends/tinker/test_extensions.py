"""What one of the two dialects has and the other has not: MinT's reverse KL, interpolation and
rollout correction, and Tinker's files, copies and external weights."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from local_backend import (
    BASE,
    MODEL,
    batch,
    chunks,
    drawing,
    run,
    sample,
    step,
)
from tinker_upstream import StartUpstream, Upstream, fingerprint, logprobs_of, make, steps

from tinkergate.backends.base import SavedCheckpoint
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import tensor_from_array
from tinkergate.v1 import (
    Checkpoint,
    CheckpointType,
    CreateActionSessionRequest,
    Datum,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    InterpolateCheckpointsRequest,
    ModelInput,
    ReverseKlDatum,
    RolloutCorrection,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    VlaTrainStepRequest,
)

TOKENS = np.arange(5, 12)
STATE = f"tinker://{MODEL}/weights/ck"


def reverse_kl(reference: str) -> ForwardBackwardReverseKlRequest:
    datum = ReverseKlDatum(
        student_input=ModelInput(chunks=chunks(TOKENS[:-1].tolist())),
        reference_input=ModelInput(chunks=chunks([3, *TOKENS[1:-1].tolist()])),
        target_tokens=tensor_from_array(TOKENS[1:]),
        weights=tensor_from_array(np.array([0, 0, 1, 1, 1, 0.5], np.float32)),
    )
    return ForwardBackwardReverseKlRequest(
        model_id=MODEL, reference_model_path=reference, data=[datum, datum], temperature=1.5
    )


async def test_reverse_kl_gives_the_numbers_of_the_engine(
    start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("mint")
    far = upstream.backend()
    await far.start()
    results = []
    for backend in (far, near):
        await make(backend)
        await steps(backend, range(1))
        await run(backend, SaveStateRequest(model_id=MODEL, name="ck"))
        await steps(backend, range(1, 2))
        for reference in (STATE, BASE):
            results.append(await run(backend, reverse_kl(reference)))
            await run(backend, step())
    for got, expected in ((results[0], results[2]), (results[1], results[3])):
        assert got.metrics["loss:sum"] == expected.metrics["loss:sum"]
        losses = [output.loss_fn_outputs[0].fields["loss"].data for output in (got, expected)]
        assert losses[0] == losses[1]
        assert len(losses[0]) == 8
    assert (await fingerprint(far) == await fingerprint(near)).all()
    await far.close()


async def test_interpolation_gives_the_weights_of_the_engine(
    start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("mint")
    far = upstream.backend()
    await far.start()
    path = f"tinker://{MODEL}/sampler_weights/mix"
    answers = []
    for backend in (far, near):
        await make(backend)
        paths = []
        for name in ("a", "b"):
            await steps(backend, range(len(paths), len(paths) + 1))
            await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name=name))
            paths.append(f"tinker://{MODEL}/sampler_weights/{name}")
        request = InterpolateCheckpointsRequest(source_paths=paths, coefficients=[0.25, 0.75])
        checkpoint = Checkpoint(
            path=path, model_id=MODEL, base_model=BASE, type=CheckpointType.CHECKPOINT_TYPE_SAMPLER
        )
        made = await backend.interpolate_checkpoints(request, checkpoint)
        assert isinstance(made, SavedCheckpoint)
        asked: dict[str, Any] = {
            "model_path": path,
            "prompt": ModelInput(chunks=chunks(TOKENS.tolist())),
            "sampling_params": drawing(4),
            "prompt_logprobs": True,
        }
        answers.append(await sample(backend, **asked))
    assert answers[0] == answers[1]
    await far.close()


async def test_rollout_correction_reaches_the_model(
    start_upstream: StartUpstream, near: LocalBackend
) -> None:
    upstream = await start_upstream("mint")
    far = upstream.backend()
    await far.start()
    correction = RolloutCorrection(threshold=1.01, lower_threshold=0.99)
    inputs = {
        "target_tokens": tensor_from_array(TOKENS[1:]),
        "logprobs": tensor_from_array(np.full(6, -1.0, np.float32)),
        "advantages": tensor_from_array(np.ones(6, np.float32)),
    }
    datum = Datum(model_input=chunks(TOKENS[:-1].tolist()), loss_fn_inputs=inputs)
    request = ForwardBackwardRequest(model_id=MODEL, data=[datum], loss_fn="importance_sampling")
    for backend in (far, near):
        await make(backend, rollout_correction=correction)
        before = await fingerprint(backend)
        # What the sampler says of these tokens is far from the truth, so they are left out.
        assert (await run(backend, request)).metrics["loss:sum"] == 0
        await run(backend, step())
        assert (await fingerprint(backend) == before).all()
    await far.close()


async def test_what_the_engine_does_not_have_is_refused_by_the_service_and_told(
    start_upstream: StartUpstream,
) -> None:
    upstream = await start_upstream("mint")
    far = upstream.backend()
    await far.start()
    await make(far)
    request = VlaTrainStepRequest(model_id=MODEL, loss_fn="flow_matching")
    with pytest.raises(GatewayError, match="backend 'far': vla/train_step") as raised:
        await run(far, request)
    assert raised.value.kind in (Kind.UNSUPPORTED, Kind.INVALID)
    with pytest.raises(GatewayError, match="opening an action session"):
        await far.create_action_session(
            CreateActionSessionRequest(session_id="s-1", base_model=BASE)
        )
    assert logprobs_of(await run(far, batch())).size  # the model goes on
    await far.close()


async def _read(backend: TinkerBackend, path: str, name: str, offset: int = 0) -> bytes:
    parts = []
    async with aclosing(backend.read_checkpoint_file(path, name, offset)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            parts.append(piece)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("dialect", "kind"),
    [("tinker", "weights"), ("tinker", "external_weights"), ("mint", "weights")],
)
async def test_files_of_a_checkpoint_are_those_of_the_service(
    dialect: str, kind: str, start_upstream: StartUpstream, tmp_path: Any
) -> None:
    upstream = await start_upstream(dialect)
    far = upstream.backend(scratch_dir=tmp_path / "scratch" / "far")
    await far.start()
    await make(far)
    await steps(far, range(1))
    saving = SaveStateRequest if kind == "weights" else SaveWeightsExternalRequest
    saved = await run(far, saving(model_id=MODEL, name="ck"))
    path = f"tinker://{MODEL}/{kind}/ck"
    files = {file.name: file for file in await far.checkpoint_files(path)}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    for file in await upstream.engine.checkpoint_files(saved.upstream_path):
        data = await _read(far, path, file.name)
        assert len(data) == file.size_bytes == files[file.name].size_bytes
        if file.sha256:
            assert hashlib.sha256(data).digest() == file.sha256
        assert await _read(far, path, file.name, 7) == data[7:]
    with pytest.raises(GatewayError, match="has no file"):
        await _read(far, path, "../secret")
    await far.close()
    assert not list((tmp_path / "scratch").glob("far/*"))


async def test_a_checkpoint_is_copied_and_removed_there(start_upstream: StartUpstream) -> None:
    upstream = await start_upstream("tinker")
    far = upstream.backend()
    await far.start()
    await make(far)
    await steps(far, range(1))
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    copy = "tinker://c-1:train:0/weights/ck"
    made = await far.copy_checkpoint(STATE, Checkpoint(path=copy, base_model=BASE))
    assert made.upstream_path
    await far.delete_checkpoint(STATE)
    await far.delete_checkpoint(STATE)
    await make(far, "s-1:train:5", copy)
    assert (await fingerprint(far, "s-1:train:5") == await fingerprint(far)).all()
    with pytest.raises(GatewayError):
        await make(far, "s-1:train:6", made.upstream_path.replace("/ck", "/no"))
    await far.close()


async def test_saving_over_a_sampler_checkpoint_replaces_it(upstream: Upstream) -> None:
    far = upstream.backend()
    await far.start()
    await make(far)
    path = f"tinker://{MODEL}/sampler_weights/w"
    asked: dict[str, Any] = {
        "model_path": path,
        "prompt": ModelInput(chunks=chunks(TOKENS.tolist())),
        "sampling_params": drawing(1),
        "prompt_logprobs": True,
    }
    answers = []
    for number in range(2):
        await steps(far, range(number, number + 1))
        await run(far, SaveWeightsForSamplerRequest(model_id=MODEL, name="w", overwrite=True))
        answers.append(await sample(far, **asked))
    assert answers[0].prompt_logprobs != answers[1].prompt_logprobs
    await far.close()


async def test_what_a_dialect_does_not_have_is_refused(upstream: Upstream) -> None:
    far = upstream.backend()
    await far.start()
    can = far.capabilities()
    mint = upstream.dialect == "mint"
    assert (can.max_lora_rank, can.pipeline_depth) == ((64, 1) if mint else (0, 16))
    for flag in ("reverse_kl", "checkpoint_interpolation", "rollout_correction", "vla"):
        assert getattr(can, flag) == mint
    assert can.external_weights != mint
    assert can.checkpoint_files
    assert {loss.name for loss in can.losses} >= {"cross_entropy", "ppo", "cispo", "dro"}
    with pytest.raises(GatewayError, match="importing") as raised:
        await far.import_checkpoint(Checkpoint(), {})
    assert raised.value.kind is Kind.UNSUPPORTED
    await make(far)
    refused: Any = (
        SaveWeightsExternalRequest(model_id=MODEL, name="x") if mint else reverse_kl(BASE)
    )
    with pytest.raises(GatewayError, match="does not support"):
        await run(far, refused)
    if mint:
        with pytest.raises(GatewayError, match="copying"):
            await far.copy_checkpoint(STATE, Checkpoint())
    await far.close()
