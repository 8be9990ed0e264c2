"""What each training operation is at Loops: its bodies, and how its results are read (wire sections
5.3 to 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinkergate.backends.base import TrainingRequest
from tinkergate.backends.failures import failure
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.loops.models import read_step
from tinkergate.dialects.loops.read_results import (
    LOGPROBS,
    FloatArray,
    flag_metric,
    logprobs_from_json,
    metrics_from_json,
)
from tinkergate.dialects.loops.write_requests import (
    SUMS,
    TARGETS,
    WEIGHTS,
    forward_backward_json,
    optim_step_json,
    parts_of,
)
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.read_results import ARRAY_RECORD, array_records
from tinkergate.errors import ErrorReason, Kind, unsupported
from tinkergate.tensors import array_from_tensor
from tinkergate.v1 import (
    Datum,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    Normalization,
    OptimStepRequest,
    OptimStepResult,
    SamplerWeightsKind,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)

LOOK = (
    "nobody can tell what the model has gone through, so it takes no more operations until "
    "LoadState gives it the weights of a checkpoint, on a fresh trainer; checkpoints that were "
    "saved before are sound"
)
"""What to do when the outcome of a training operation is unknown."""
LOOK_SAVED = "the checkpoint may be there; the model is as it was"


@dataclass(frozen=True)
class Saved:
    """The service's result of a save."""

    name: str
    """What it was asked to be called."""
    path: str
    version: int


@dataclass(frozen=True)
class LoopsOperation:
    """A training operation on the wire: one request of a route for each part of it."""

    route: str
    bodies: list[Mapping[str, Any]]
    """Not sent yet: they are large, and let go of one by one."""
    readers: Sequence[Callable[[Fields], Any]]
    """Read the result of each part."""
    changes_model: bool
    """Whether the model is another one after it."""
    joined: Callable[[Sequence[Any]], Any] = lambda results: results[0]
    """The result of all parts. Raises GatewayError; the model is in doubt then, if it was to
    change."""
    per_token: bool | None = None
    """How its gradients are taken; None if it has none."""

    @property
    def look(self) -> str:
        """What to do when its outcome is unknown."""
        return LOOK if self.changes_model else LOOK_SAVED


async def loops_operation(
    request: TrainingRequest,
    backend: str,
    checkpoints: KnownCheckpoints,
    save_name: str,
) -> LoopsOperation:
    """The operation of a request. `save_name` is the service's name of what is saved. Raises
    GatewayError (INVALID or UNSUPPORTED) for what Loops does not have."""
    match request:
        case ForwardRequest() | ForwardBackwardRequest():
            # Large batches are written on another thread: it takes a while.
            return await asyncio.to_thread(_forward_backward, request, backend)
        case OptimStepRequest():
            if request.WhichOneof("optimizer") == "other":
                raise unsupported(f"the optimizer {request.other.type!r}", backend)
            return LoopsOperation("optim_step", [optim_step_json(request)], [_read_optim], True)
        case LoadStateRequest():
            route = "load_state_with_optimizer" if request.with_optimizer else "load_state"
            body = {"path": checkpoints.find(request.path).upstream_path}
            return LoopsOperation(route, [body], [read_step], True)
        case SaveStateRequest():
            named: dict[str, Any] = {"name": save_name, "ttl_seconds": None}
            return LoopsOperation("save_state", [named], [_saved(save_name)], False)
        case SaveWeightsForSamplerRequest():
            if request.kind == SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_INFLIGHT:
                raise unsupported("samplers that follow training", backend)
            # A time to live is the gateway's business: it may be changed later, and nobody would
            # tell the service.
            told: dict[str, Any] = {"name": save_name, "bump_version": not request.name}
            if request.name:
                told["ttl_seconds"] = None
            return LoopsOperation("save_weights_for_sampler", [told], [_saved(save_name)], False)
    raise unsupported(type(request).__name__.removesuffix("Request"), backend)


def _forward_backward(
    request: ForwardRequest | ForwardBackwardRequest, backend: str
) -> LoopsOperation:
    """A request under cross_entropy, in as many bodies as it takes."""
    forward = isinstance(request, ForwardRequest)
    per_token = (
        isinstance(request, ForwardBackwardRequest)
        and request.normalization == Normalization.NORMALIZATION_PER_TOKEN
    )
    parts = parts_of(request.data)
    targets = [array_from_tensor(datum.loss_fn_inputs[TARGETS]).shape for datum in request.data]
    readers = []
    begin = 0
    for part in parts:
        shapes = targets[begin : begin + part.datums]
        begin += part.datums
        readers.append(_reader(shapes, per_token=per_token))

    def joined(results: Sequence[tuple[list[FloatArray], bool]]) -> ForwardBackwardOutput:
        if not all(acknowledged for _, acknowledged in results):
            raise failure(
                backend,
                "forward" if forward else "forward_backward",
                f"was done without plain sums: the trainer did not acknowledge {SUMS}, so its "
                "gradients are another thing than was asked for",
                kind=Kind.UNSUPPORTED,
                reason=ErrorReason.ERROR_REASON_UNSUPPORTED,
            )
        logprobs = [array for arrays, _ in results for array in arrays]
        return ForwardBackwardOutput(
            loss_fn_output_type=ARRAY_RECORD,
            loss_fn_outputs=array_records([{LOGPROBS: array} for array in logprobs]),
            metrics={"loss:sum": loss_sum(request.data, logprobs)},
        )

    return LoopsOperation(
        "forward" if forward else "forward_backward",
        [forward_backward_json(part, per_token=per_token) for part in parts],
        readers,
        not forward,
        joined,
        None if forward else per_token,
    )


def _reader(
    shapes: Sequence[tuple[int, ...]], *, per_token: bool
) -> Callable[[Fields], tuple[list[FloatArray], bool]]:
    def read(fields: Fields) -> tuple[list[FloatArray], bool]:
        return logprobs_from_json(fields, shapes), per_token or flag_metric(fields, SUMS)

    return read


def loss_sum(data: Sequence[Datum], logprobs: Sequence[FloatArray]) -> float:
    """The canon's loss of cross_entropy, -sum(weight * logprob): Loops tells a mean."""
    total = 0.0
    for datum, values in zip(data, logprobs, strict=True):
        wide = values.astype(np.float64)
        if WEIGHTS in datum.loss_fn_inputs:
            wide *= array_from_tensor(datum.loss_fn_inputs[WEIGHTS])
        total -= float(wide.sum())
    return total


def _read_optim(fields: Fields) -> OptimStepResult:
    return OptimStepResult(metrics=metrics_from_json(fields))


def _saved(name: str) -> Callable[[Fields], Saved]:
    def read(fields: Fields) -> Saved:
        path = fields.optional_text("path") or ""
        return Saved(name, path, fields.optional_integer("version", bits=64) or 0)

    return read
