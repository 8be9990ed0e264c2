"""What operations answer, read from their messages. Arrays are read-only views of the message's
bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinkergate.tensors import Array, arrays_from_batched
from tinkergate.v1 import ForwardBackwardOutput, Operation


@dataclass(frozen=True)
class ForwardBackwardResult:
    """The outcome of `forward` and `forward_backward`."""

    outputs: Sequence[Mapping[str, Array]]
    """One mapping a datum, in order, of arrays by name."""
    metrics: Mapping[str, float]
    """Figures of the whole call by `name:reduction`; always "loss:sum"."""
    output_type: str = "ArrayRecord"
    """How the backend calls the form of `outputs`."""

    @property
    def loss(self) -> float:
        """The loss: a sum over all tokens of all datums."""
        return self.metrics["loss:sum"]

    @property
    def logprobs(self) -> list[NDArray[np.float32]]:
        """The logprobs of each datum's targets, shaped like them."""
        return [output["logprobs"] for output in self.outputs]  # type: ignore[misc]


@dataclass(frozen=True)
class OptimStepResult:
    """The outcome of `optim_step`."""

    metrics: Mapping[str, float]
    """Figures of the step, such as "grad_norm:mean", the global norm before clipping."""


def read_forward_backward(operations: Sequence[Operation]) -> ForwardBackwardResult:
    """The outcome of a call, from those of its chunks in order."""
    chunks = [operation.forward_backward for operation in operations]
    outputs = [_read_outputs(chunk) for chunk in chunks]
    return ForwardBackwardResult(
        outputs=[output for chunk in outputs for output in chunk],
        metrics=merge_metrics(
            [dict(chunk.metrics) for chunk in chunks], [len(output) for output in outputs]
        ),
        output_type=chunks[0].loss_fn_output_type,
    )


def read_optim_step(operations: Sequence[Operation]) -> OptimStepResult:
    """The outcome of an optimizer step."""
    return OptimStepResult(dict(operations[0].optim_step.metrics))


def read_any(operations: Sequence[Operation]) -> object:
    """The outcome of an operation of whatever kind: None if it has nothing to tell."""
    operation = operations[0]
    match operation.WhichOneof("result"):
        case "forward_backward":
            return read_forward_backward(operations)
        case "optim_step":
            return read_optim_step(operations)
        case "create_model":
            return operation.create_model.model_id
        case "save_state":
            return operation.save_state.path
        case "load_state":
            return operation.load_state.path
        case "save_weights_for_sampler":
            saved = operation.save_weights_for_sampler
            return saved.path or saved.sampler_id
        case "save_weights_external":
            return operation.save_weights_external.path
        case "interpolate_checkpoints":
            return operation.interpolate_checkpoints.path
        case "vla_train_step":
            return OptimStepResult(dict(operation.vla_train_step.metrics))
    return None


def _read_outputs(chunk: ForwardBackwardOutput) -> list[dict[str, Array]]:
    outputs: list[dict[str, Array]] = []
    for record in chunk.loss_fn_outputs:
        columns = {name: arrays_from_batched(field) for name, field in record.fields.items()}
        count = record.num_datums or max((len(column) for column in columns.values()), default=0)
        outputs.extend(
            {name: column[index] for name, column in columns.items()} for index in range(count)
        )
    return outputs


def merge_metrics(chunks: Sequence[Mapping[str, float]], datums: Sequence[int]) -> dict[str, float]:
    """The metrics of a call from those of its chunks, each figure by the reduction that its name
    ends with. `datums` are the chunks' sizes, the weights of means. Figures that a chunk lacks or
    whose reduction is unknown are left out; "unique" keeps each chunk's value, the later ones as
    `name_1`, `name_2` and so on."""
    if len(chunks) == 1:
        return dict(chunks[0])
    merged: dict[str, float] = {}
    for name in chunks[0]:
        if not all(name in chunk for chunk in chunks):
            continue
        values = [chunk[name] for chunk in chunks]
        reduction = name.rpartition(":")[2]
        if reduction == "unique":
            merged[name] = values[0]
            merged |= {f"{name}_{index}": value for index, value in enumerate(values[1:], 1)}
        elif reduce := _REDUCTIONS.get(reduction):
            merged[name] = reduce(values, datums)
    return merged


def _mean(values: Sequence[float], datums: Sequence[int]) -> float:
    weighted = (value * count for value, count in zip(values, datums, strict=True))
    return math.fsum(weighted) / max(sum(datums), 1)


_REDUCTIONS: dict[str, Callable[[Sequence[float], Sequence[int]], float]] = {
    "sum": lambda values, _: math.fsum(values),
    "mean": _mean,
    "min": lambda values, _: min(values),
    "max": lambda values, _: max(values),
    "slack": lambda values, datums: max(values) - _mean(values, datums),
    "hash2": lambda values, _: math.fmod(math.fsum(values), 2.0**64),
}
