"""Losses, reductions and parts of large batches, by way of a gateway that is Loops: the numbers are
those of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from local_backend import MODEL, VOCAB, batch, datum, run, step
from loops_upstream import LoopsUpstream, StartLoops, make
from tinker_upstream import fingerprint, logprobs_of

from tinkergate.backends.emulation import SURROGATE_LOSS
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.backends.loops import training_operations
from tinkergate.backends.loops.backend import LoopsBackend
from tinkergate.dialects.loops.write_requests import parts_of
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.tensors import tensor_from_array
from tinkergate.v1 import (
    DType,
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    Normalization,
    SaveStateRequest,
    SparseCsr,
    Tensor,
)
from tinkergate_kernels.losses import LOSSES

PER_TOKEN = Normalization.NORMALIZATION_PER_TOKEN
EMULATED = [name for name in LOSSES if name != "cross_entropy"]


def asked(name: str, count: int = 4) -> ForwardBackwardRequest:
    """Datums with all that a loss needs."""
    numbers = np.random.default_rng(8)
    made = batch(seed=2, count=count)
    made.loss_fn = name
    for each in made.data:
        length = len(each.loss_fn_inputs["target_tokens"].dense) // 8
        for key in LOSSES[name].required:
            if key == "target_tokens":
                continue
            drawn = numbers.normal(size=length)
            if key in ("logprobs", "ref_logprobs"):
                drawn = numbers.uniform(-8.0, -1.0, length)
            elif key in ("weights", "sequence_ratio_mask"):
                drawn = (np.arange(length) % 2 == 0).astype(float)
            each.loss_fn_inputs[key].CopyFrom(tensor_from_array(drawn.astype(np.float32)))
    return made


@pytest.mark.parametrize("name", EMULATED)
async def test_losses_that_are_computed_here_train_as_the_engines_own(
    name: str, start_loops: StartLoops, near: LocalBackend
) -> None:
    upstream = await start_loops("serverless")
    far = upstream.backend()
    await far.start()
    results = []
    for backend in (far, near):
        await make(backend)
        results.append(await run(backend, asked(name)))
        await run(backend, step())
    np.testing.assert_allclose(*(logprobs_of(result) for result in results), rtol=1e-6)
    np.testing.assert_allclose(*(r.metrics["loss:sum"] for r in results), rtol=1e-5, atol=1e-6)
    assert SURROGATE_LOSS in results[0].metrics
    np.testing.assert_allclose(await fingerprint(far), await fingerprint(near), rtol=1e-5)
    assert upstream.asked("/forward") == upstream.asked("/forward_backward") + 1 == 2
    sent = [
        read_json(seen.body)
        for seen in upstream.proxy.forwarded
        if seen.path.endswith(("/forward", "/forward_backward"))
    ]
    assert {body["loss_fn"] for body in sent} == {"cross_entropy"}
    assert all(body["loss_fn_config"] == {"skip_token_normalization": True} for body in sent)
    await far.close()


async def test_weights_of_any_sign_targets_of_any_width_and_sparse_tensors(
    far: LoopsBackend, near: LocalBackend
) -> None:
    numbers = np.random.default_rng(3)
    request = batch(count=2)
    for row in (3, 5):
        each = datum(numbers.integers(0, VOCAB, row + 1).tolist())
        targets = numbers.integers(0, VOCAB, (row, 2))
        each.loss_fn_inputs["target_tokens"].CopyFrom(tensor_from_array(targets))
        weights = numbers.normal(size=(row, 2)).astype(np.float32)
        weights[:, 0] = 0.0
        packed = SparseCsr(
            values=weights[:, 1].tobytes(),
            crow_indices=np.arange(row + 1, dtype="<i8").tobytes(),
            col_indices=np.ones(row, "<i8").tobytes(),
        )
        tensor = Tensor(sparse_csr=packed, dtype=DType.DTYPE_FLOAT32, shape=[row, 2])
        each.loss_fn_inputs["weights"].CopyFrom(tensor)
        request.data.append(each)
    results = []
    for backend in (far, near):
        await make(backend)
        results.append(await run(backend, request))
        await run(backend, step())
    np.testing.assert_allclose(*(r.metrics["loss:sum"] for r in results), rtol=1e-6)
    np.testing.assert_allclose(await fingerprint(far), await fingerprint(near), rtol=1e-6)
    got, wanted = results
    assert [r.num_datums for r in got.loss_fn_outputs] == [1, 1, 1, 1]
    assert sum(r.num_datums for r in wanted.loss_fn_outputs) == 4


async def test_a_large_batch_goes_in_parts_and_comes_back_whole(
    upstream: LoopsUpstream,
    far: LoopsBackend,
    near: LocalBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        training_operations, "parts_of", lambda data: parts_of(data, max_body=4096 + 900)
    )
    results = []
    for backend in (far, near):
        await make(backend)
        results.append(await run(backend, batch(count=9)))
        await run(backend, step())
    parts = upstream.asked("/forward_backward")
    assert 3 <= parts < 9
    np.testing.assert_allclose(*(logprobs_of(result) for result in results), rtol=1e-6)
    np.testing.assert_allclose(*(r.metrics["loss:sum"] for r in results), rtol=1e-6)
    np.testing.assert_allclose(await fingerprint(far), await fingerprint(near), rtol=1e-6)
    sent = [
        read_json(seen.body)["seq_id"]
        for seen in upstream.proxy.forwarded
        if seen.path.endswith(("/forward_backward", "/optim_step"))
    ]
    assert sent == list(range(2, 2 + parts + 1))


async def test_a_datum_that_fits_no_body_is_refused_before_anything_is_sent(
    upstream: LoopsUpstream, far: LoopsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(far)
    monkeypatch.setattr(
        training_operations, "parts_of", lambda data: parts_of(data, max_body=4096 + 600)
    )
    request = batch()
    request.data.append(datum(list(range(100))))
    with pytest.raises(GatewayError, match=r"data\[3\]: takes \d+ bytes of JSON") as raised:
        await run(far, request)
    assert raised.value.kind is Kind.INVALID
    assert raised.value.reason == ErrorReason.ERROR_REASON_TOO_LARGE
    assert not upstream.asked("/forward_backward")
    await run(far, step())


async def test_gradients_are_taken_per_token_where_that_is_asked_for(
    upstream: LoopsUpstream, far: LoopsBackend, near: LocalBackend
) -> None:
    assert far.capabilities().token_normalization
    results = []
    for backend in (far, near):
        await make(backend)
        for seed in range(2):
            request = batch(seed=seed)
            request.normalization = PER_TOKEN
            results.append(await run(backend, request))
        await run(backend, step())
    for got, wanted in zip(results[:2], results[2:], strict=True):
        np.testing.assert_allclose(got.metrics["loss:sum"], wanted.metrics["loss:sum"], rtol=1e-6)
    np.testing.assert_allclose(await fingerprint(far), await fingerprint(near), rtol=1e-6)
    sent = [s.body for s in upstream.proxy.forwarded if s.path.endswith("/forward_backward")]
    assert all(read_json(body)["loss_fn_config"] is None for body in sent)


async def test_sums_and_gradients_per_token_do_not_meet_in_one_step(
    upstream: LoopsUpstream, far: LoopsBackend
) -> None:
    await make(far)
    await run(far, SaveStateRequest(model_id=MODEL, name="ck"))
    per_token = batch()
    per_token.normalization = PER_TOKEN
    await run(far, batch())
    with pytest.raises(GatewayError, match="do not add up") as raised:
        await run(far, per_token)
    assert raised.value.kind is Kind.PRECONDITION
    assert raised.value.reason == ErrorReason.ERROR_REASON_NORMALIZATION_MIXED
    assert upstream.asked("/forward_backward") == 1
    await run(far, step())
    await run(far, per_token)
    with pytest.raises(GatewayError, match="do not add up"):
        await run(far, asked("ppo"))
    await run(far, LoadStateRequest(model_id=MODEL, path=f"tinker://{MODEL}/weights/ck"))
    await run(far, batch())


async def test_gradients_per_token_of_a_loss_that_is_computed_here_are_refused(
    upstream: LoopsUpstream, far: LoopsBackend
) -> None:
    await make(far)
    request = asked("ppo")
    request.normalization = PER_TOKEN
    with pytest.raises(GatewayError, match="gradients per token of 'ppo'"):
        await run(far, request)
    assert not upstream.asked("/forward")


async def test_a_forward_under_any_loss_changes_nothing(
    upstream: LoopsUpstream, far: LoopsBackend, near: LocalBackend
) -> None:
    results: list[Any] = []
    for backend in (far, near):
        await make(backend)
        for name in ("cross_entropy", "dro"):
            request = asked(name)
            forward = ForwardRequest(model_id=MODEL, data=request.data, loss_fn=name)
            results.append(await run(backend, forward))
        await run(backend, step())
    for got, wanted in zip(results[:2], results[2:], strict=True):
        np.testing.assert_allclose(got.metrics["loss:sum"], wanted.metrics["loss:sum"], rtol=1e-5)
    assert not upstream.asked("/forward_backward")
    np.testing.assert_allclose(await fingerprint(far), await fingerprint(near), rtol=1e-6)
