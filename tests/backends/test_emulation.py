"""A loss that is computed at the gateway trains as the backend's own does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import local_backend as local
import numpy as np
import pytest

from tinkergate.backends import emulation
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.tensors import arrays_from_batched, tensor_from_array
from tinkergate.v1 import (
    ConfigValue,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ForwardRequest,
    SaveStateRequest,
)
from tinkergate_kernels.losses import LOSSES

EMULATED = [name for name in LOSSES if name != "cross_entropy"]
OTHER = "s-1:train:1"


@pytest.fixture
async def backend(micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    backend = local.make_backend(micro_model_dir, tmp_path)
    await backend.start()
    yield backend
    await backend.close()


def request(name: str, model_id: str = local.MODEL) -> ForwardBackwardRequest:
    """Four datums with all that the loss takes; of an optional input only some datums have it."""
    spec = LOSSES[name]
    numbers = np.random.default_rng(8)
    made = local.batch(model_id, seed=2, count=4)
    made.loss_fn = name
    for number, datum in enumerate(made.data):
        length = len(datum.loss_fn_inputs["target_tokens"].dense) // 8
        for key in spec.inputs:
            if key in spec.required or number % 2:
                drawn = numbers.uniform(0.9, 1.1, length)
                if key in ("logprobs", "ref_logprobs"):
                    drawn = numbers.uniform(-8.0, -1.0, length)
                elif key == "advantages":
                    drawn = numbers.normal(size=length)
                elif key == "sequence_ratio_mask":
                    drawn = (np.arange(length) % 2 == 0).astype(float)
                datum.loss_fn_inputs[key].CopyFrom(tensor_from_array(drawn.astype(np.float32)))
    return made


async def emulated(
    backend: LocalBackend, asked: ForwardBackwardRequest | ForwardRequest
) -> ForwardBackwardOutput:
    """What a backend does that has no other loss than cross_entropy."""
    first = emulation.forward_of(asked)
    assert first.loss_fn == "cross_entropy"
    output = await local.run(backend, first)
    if isinstance(asked, ForwardRequest):
        return emulation.forward_output(asked, output)
    surrogate = emulation.Surrogate(asked, output)
    assert surrogate.request.loss_fn == "cross_entropy"
    return surrogate.output(await local.run(backend, surrogate.request))


def rows(output: ForwardBackwardOutput) -> list[np.ndarray[Any, Any]]:
    return [
        array
        for record in output.loss_fn_outputs
        for array in arrays_from_batched(record.fields["logprobs"])
    ]


@pytest.mark.parametrize("name", EMULATED)
async def test_a_step_by_an_emulated_loss_is_that_of_the_loss_itself(
    backend: LocalBackend, tmp_path: Path, name: str
) -> None:
    for model_id in (local.MODEL, OTHER):
        await local.make_model(backend, model_id)
    native = await local.run(backend, request(name, local.MODEL))
    ours_whole = await emulated(backend, request(name, OTHER))
    for ours, theirs in zip(rows(ours_whole), rows(native), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    metrics = dict(ours_whole.metrics)
    assert emulation.SURROGATE_LOSS in metrics
    del metrics[emulation.SURROGATE_LOSS]
    assert metrics == pytest.approx(dict(native.metrics), rel=1e-6)
    norms = []
    for model_id in (local.MODEL, OTHER):
        norms.append((await local.run(backend, local.step(model_id))).metrics["grad_norm:mean"])
        await local.run(backend, SaveStateRequest(model_id=model_id, name="after"))
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("name", EMULATED)
async def test_an_emulated_forward_says_the_same_and_leaves_no_gradient(
    backend: LocalBackend, name: str
) -> None:
    await local.make_model(backend)
    asked = request(name)
    fields = {"data": asked.data, "loss_fn": name, "model_id": local.MODEL}
    native = await local.run(backend, ForwardRequest(**fields))
    ours = await emulated(backend, ForwardRequest(**fields))
    assert dict(ours.metrics) == pytest.approx(dict(native.metrics), rel=1e-6)
    step = await local.run(backend, local.step())
    assert step.metrics["grad_norm:mean"] == 0.0


async def test_settings_reach_the_loss(backend: LocalBackend) -> None:
    await local.make_model(backend)
    asked = request("dro")
    fields = {"data": asked.data, "loss_fn": "dro", "model_id": local.MODEL}
    config = {"beta": ConfigValue(number=0.7)}
    native = await local.run(backend, ForwardRequest(loss_fn_config=config, **fields))
    default = await local.run(backend, ForwardRequest(**fields))
    ours = await emulated(backend, ForwardRequest(loss_fn_config=config, **fields))
    assert ours.metrics["loss:sum"] == pytest.approx(native.metrics["loss:sum"], rel=1e-6)
    assert ours.metrics["loss:sum"] != pytest.approx(default.metrics["loss:sum"], rel=1e-3)


def test_what_is_offered_is_what_the_backend_lacks() -> None:
    offered = emulation.emulated_losses({"cross_entropy", "ppo", "something else"})
    assert [loss.name for loss in offered] == [name for name in EMULATED if name != "ppo"]
    assert all(loss.emulated for loss in offered)
    assert not emulation.emulated_losses({"ppo"})
