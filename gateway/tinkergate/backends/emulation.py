"""Losses that a backend lacks, computed here: design.md section 6.

Let C be the loss, a function of the logprobs lp. A forward gives lp; our loss gives C and
g = dC/dlp; and cross_entropy with the weights -g, whose loss is -sum(w lp), has the gradient
g dlp/dtheta, which is that of C. So any backend that takes cross_entropy with weights of any sign
trains with any loss, at the price of one more forward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from tinkergate.backends.base import Submission, TrainingResult
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.tensors import (
    array_from_tensor,
    arrays_from_batched,
    batched_from_arrays,
    tensor_from_array,
)
from tinkergate.v1 import (
    ArrayRecord,
    Datum,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ForwardRequest,
    LossCapability,
)

CROSS_ENTROPY = "cross_entropy"
TARGETS = "target_tokens"
WEIGHTS = "weights"
LOGPROBS = "logprobs"
SURROGATE_LOSS = "surrogate_loss:sum"
"""What cross_entropy with the weights -g gave; its presence tells that the loss was computed
here."""

FloatArray = NDArray[np.float32]


def emulated_losses(native: Collection[str]) -> list[LossCapability]:
    """The losses that a backend with these of its own can be given: none where PyTorch, which
    computes them, is not installed, or without cross_entropy."""
    if CROSS_ENTROPY not in native or find_spec("torch") is None:
        return []
    from tinkergate.backends.losses import loss_capability
    from tinkergate_kernels.losses import LOSSES

    found = [loss_capability(name) for name in LOSSES if name not in native]
    for loss in found:
        loss.emulated = True
    return found


def forward_of(request: ForwardRequest | ForwardBackwardRequest) -> ForwardRequest:
    """The request for the logprobs of the targets. It has no place in the order yet."""
    return ForwardRequest(
        model_id=request.model_id,
        loss_fn=CROSS_ENTROPY,
        data=[
            Datum(
                model_input=datum.model_input,
                loss_fn_inputs={TARGETS: datum.loss_fn_inputs[TARGETS]},
            )
            for datum in request.data
        ],
    )


class Surrogate:
    """What is left to do once the forward is there: a cross_entropy with the gradient of the
    loss. Nothing else of the model may run between the two."""

    def __init__(self, asked: ForwardBackwardRequest, forward: ForwardBackwardOutput) -> None:
        """`forward` is what `forward_of(asked)` answered."""
        self._logprobs = _logprobs(forward, asked)
        self._metrics, gradient = _evaluated(asked, self._logprobs)
        self.request = ForwardBackwardRequest(model_id=asked.model_id, loss_fn=CROSS_ENTROPY)
        """To be given to the backend. It has no place in the order yet."""
        for datum, slope in zip(asked.data, gradient, strict=True):
            inputs = {TARGETS: datum.loss_fn_inputs[TARGETS], WEIGHTS: tensor_from_array(-slope)}
            self.request.data.append(Datum(model_input=datum.model_input, loss_fn_inputs=inputs))

    def output(self, done: ForwardBackwardOutput) -> ForwardBackwardOutput:
        """The outcome of the request that was asked, from that of the surrogate."""
        metrics = self._metrics | {SURROGATE_LOSS: done.metrics["loss:sum"]}
        return _output(self._logprobs, metrics)


def forward_output(asked: ForwardRequest, forward: ForwardBackwardOutput) -> ForwardBackwardOutput:
    """The outcome of Forward under a loss that the backend lacks. `forward` is what
    `forward_of(asked)` answered."""
    logprobs = _logprobs(forward, asked)
    metrics, _ = _evaluated(asked, logprobs)
    return _output(logprobs, metrics)


Accept = Callable[[ForwardRequest | ForwardBackwardRequest], Awaitable[Submission]]
"""Has a backend take a request, at the end of a model's order."""


async def emulate(request: ForwardRequest | ForwardBackwardRequest, accept: Accept) -> Submission:
    """A request under a loss that the backend lacks. Returns when its second part has its place, so
    nothing of the model comes between the two, if nothing of it is submitted meanwhile. Raises
    GatewayError."""
    output = await _uncancelled(await accept(forward_of(request)))
    if isinstance(request, ForwardRequest):
        done: asyncio.Future[TrainingResult] = asyncio.get_running_loop().create_future()
        done.set_result(await asyncio.to_thread(forward_output, request, output))
        return Submission(done)
    surrogate = await asyncio.to_thread(Surrogate, request, output)
    second = await accept(surrogate.request)

    async def result() -> TrainingResult:
        return surrogate.output(await _uncancelled(second))

    return Submission(result(), queue_state=second.queue_state)


async def _uncancelled(submission: Submission) -> ForwardBackwardOutput:
    """The result of a forward or forward_backward, whose work goes on if its caller goes away."""
    output = await asyncio.shield(asyncio.ensure_future(submission.result))
    assert isinstance(output, ForwardBackwardOutput)
    return output


def _logprobs(
    output: ForwardBackwardOutput, request: ForwardRequest | ForwardBackwardRequest
) -> list[FloatArray]:
    """The logprobs of each datum, shaped like its targets."""
    found = [
        np.asarray(array, np.float32)
        for record in output.loss_fn_outputs
        for array in arrays_from_batched(record.fields[LOGPROBS])
    ]
    if len(found) != len(request.data):
        raise GatewayError(
            Kind.INTERNAL,
            ErrorReason.ERROR_REASON_INTERNAL,
            f"forward answered logprobs of {len(found)} datums; {len(request.data)} were sent",
        )
    return found


def _evaluated(
    request: ForwardRequest | ForwardBackwardRequest, logprobs: Sequence[FloatArray]
) -> tuple[dict[str, float], list[FloatArray]]:
    """The metrics, and the gradient of each datum's logprobs."""
    import torch

    from tinkergate_kernels.losses import LOSSES, evaluate

    spec = LOSSES[request.loss_fn]
    config = {
        key: value.text if value.HasField("text") else value.number
        for key, value in request.loss_fn_config.items()
    }
    settings = spec.resolved(config)
    inputs = {}
    for name in spec.inputs:
        if not any(name in datum.loss_fn_inputs for datum in request.data):
            continue
        parts = [
            array_from_tensor(datum.loss_fn_inputs[name])
            if name in datum.loss_fn_inputs
            else np.full(array.shape, spec.filler(name, settings), np.float32)
            for datum, array in zip(request.data, logprobs, strict=True)
        ]
        inputs[name] = torch.from_numpy(np.concatenate(parts).astype(np.float32))
    lengths = np.array([len(array) for array in logprobs])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = torch.from_numpy(np.concatenate(logprobs))
    result = evaluate(request.loss_fn, flat, inputs, torch.from_numpy(offsets), config)
    gradient = np.split(result.gradient.numpy(), offsets[1:-1])
    return {"loss:sum": result.loss.item(), **result.metrics}, gradient


def _output(logprobs: Sequence[FloatArray], metrics: dict[str, float]) -> ForwardBackwardOutput:
    record = ArrayRecord(fields={LOGPROBS: batched_from_arrays(logprobs)}, num_datums=len(logprobs))
    return ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=[record], metrics=metrics
    )
