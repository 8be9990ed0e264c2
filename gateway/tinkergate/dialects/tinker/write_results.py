"""Results of the contract in Tinker's JSON (wire sections 4 to 6), for `json_text.write_json`.

In protobuf nothing needs writing: ForwardBackwardOutput and SampleResponse are Tinker's to the
byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.dialects.tinker.json_text import number, numbers
from tinkergate.dialects.tinker.tensors_json import array_to_json, tensor_to_json
from tinkergate.tensors import arrays_from_batched, floats_from_bytes, tokens_from_bytes
from tinkergate.v1 import (
    ArrayRecord,
    FailureCategory,
    ForwardBackwardOutput,
    InterpolateCheckpointsResult,
    Model,
    Operation,
    OperationError,
    OperationKind,
    OptimizerConfig,
    QueueState,
    SampledSequence,
    SampleResponse,
    StopReason,
    TopkLogprobs,
)

NO_ENTRY = -99999.0
"""The logprob of a place in a table of likeliest tokens where there is none."""

_CATEGORIES = {
    FailureCategory.FAILURE_CATEGORY_SERVER: "server",
    FailureCategory.FAILURE_CATEGORY_USER: "user",
}
_QUEUE_STATES = {
    QueueState.QUEUE_STATE_PAUSED_CAPACITY: "paused_capacity",
    QueueState.QUEUE_STATE_PAUSED_RATE_LIMIT: "paused_rate_limit",
}
_STOP_REASONS = {
    StopReason.STOP_REASON_STOP: "stop",
    StopReason.STOP_REASON_LENGTH: "length",
}


def forward_backward_to_json(output: ForwardBackwardOutput) -> dict[str, Any]:
    """The result of forward and forward_backward. Raises ValueError for an output that is not
    well-formed."""
    return {
        "loss_fn_output_type": output.loss_fn_output_type,
        "loss_fn_outputs": outputs_to_json(output),
        "metrics": metrics_to_json(output.metrics),
    }


def outputs_to_json(output: ForwardBackwardOutput) -> list[dict[str, Any]]:
    """The named arrays of each datum."""
    return list(chain.from_iterable(_records(record) for record in output.loss_fn_outputs))


def _records(record: ArrayRecord) -> list[dict[str, Any]]:
    columns = {name: arrays_from_batched(batched) for name, batched in record.fields.items()}
    count = record.num_datums or max((len(arrays) for arrays in columns.values()), default=0)
    return [
        {name: array_to_json(arrays[index]) for name, arrays in columns.items()}
        for index in range(count)
    ]


def metrics_to_json(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Figures by name; those that are not finite are told as Python tells them."""
    return {name: number(value) for name, value in metrics.items()}


def reverse_kl_to_json(output: ForwardBackwardOutput) -> dict[str, Any]:
    """The result of MinT's forward_backward_reverse_kl (wire section 13.3)."""
    return {
        "outputs": outputs_to_json(output),
        "metrics": metrics_to_json(output.metrics),
        "type": "mint_forward_backward_reverse_kl",
    }


def _interpolation_to_json(result: InterpolateCheckpointsResult) -> dict[str, Any]:
    """The result of MinT's checkpoints/interpolate (wire section 13.2)."""
    kind = result.path.rsplit("/", 2)[1]
    return {
        "path": result.path,
        "checkpoint_type": "training" if kind == "weights" else "sampler",
        "source_paths": list(result.source_paths),
        "coefficients": list(result.coefficients),
        "has_rank_shards": False,
        "type": "mint_interpolate_checkpoints",
    }


def sample_to_json(response: SampleResponse) -> dict[str, Any]:
    """The result of asample. What was not asked for is left out."""
    told: dict[str, Any] = {
        "type": "sample",
        "sequences": [_sequence_to_json(sequence) for sequence in response.sequences],
        "prompt_cache_hit_tokens": response.prompt_cache_hit_tokens,
    }
    if response.prompt_logprobs:
        # NaN, where there is none, is told as null.
        told["prompt_logprobs"] = floats_from_bytes(response.prompt_logprobs)
    if response.HasField("topk_prompt_logprobs"):
        told["topk_prompt_logprobs"] = _topk_to_json(response.topk_prompt_logprobs)
    if response.HasField("target_prompt_logprobs"):
        told["target_prompt_logprobs"] = tensor_to_json(response.target_prompt_logprobs)
    if response.HasField("prompt_alt_tokens"):
        told["prompt_alt_tokens"] = {
            "tokens": tensor_to_json(response.prompt_alt_tokens.tokens),
            "logprobs": tensor_to_json(response.prompt_alt_tokens.logprobs),
        }
    return told


def _sequence_to_json(sequence: SampledSequence) -> dict[str, Any]:
    told: dict[str, Any] = {
        "stop_reason": _STOP_REASONS[sequence.stop_reason],
        "tokens": tokens_from_bytes(sequence.tokens),
    }
    if sequence.HasField("logprobs"):
        told["logprobs"] = numbers(floats_from_bytes(sequence.logprobs))
    if sequence.HasField("topk_sampled_logprobs"):
        told["topk_sampled_logprobs"] = _topk_to_json(sequence.topk_sampled_logprobs)
    return told


def _topk_to_json(table: TopkLogprobs) -> list[list[tuple[int, float]] | None] | None:
    """A list of (token, logprob) a position, null for a position that has none."""
    if not table.k or not table.length:
        return None
    shape = (table.length, table.k)
    tokens = tokens_from_bytes(table.token_ids).reshape(shape)
    logprobs = floats_from_bytes(table.logprobs).reshape(shape)
    return [_row(*row) for row in zip(tokens, logprobs, strict=True)]


def _row(
    tokens: NDArray[np.int32], logprobs: NDArray[np.float32]
) -> list[tuple[int, float]] | None:
    there = logprobs != np.float32(NO_ENTRY)
    if not there.any():
        return None
    return list(zip(tokens[there].tolist(), logprobs[there].tolist(), strict=True))


_WRITERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "create_model": lambda result: {"model_id": result.model_id, "type": "create_model"},
    "unload_model": lambda result: {"model_id": result.model_id, "type": "unload_model"},
    "forward_backward": forward_backward_to_json,
    "optim_step": lambda result: {"metrics": metrics_to_json(result.metrics)},
    "save_state": lambda result: {"path": result.path, "type": "save_weights"},
    "load_state": lambda result: {"path": result.path, "type": "load_weights"},
    "save_weights_for_sampler": lambda result: {
        "path": result.path or None,
        "sampling_session_id": result.sampler_id or None,
        "type": "save_weights_for_sampler",
    },
    "save_weights_external": lambda result: {
        "path": result.path,
        "size_bytes": result.size_bytes,
        "type": "save_weights_external",
    },
    "interpolate_checkpoints": _interpolation_to_json,
    "vla_train_step": lambda result: {"metrics": metrics_to_json(result.metrics)},
}


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """The result of an operation that has succeeded. Raises KeyError for a result that Tinker has
    no form of."""
    if operation.kind == OperationKind.OPERATION_KIND_FORWARD_BACKWARD_REVERSE_KL:
        return reverse_kl_to_json(operation.forward_backward)
    kind = operation.WhichOneof("result") or ""
    return _WRITERS[kind](getattr(operation, kind))


def load_create_to_json(operation: Operation) -> dict[str, Any]:
    """The result of load_weights that made a model."""
    return {"model_id": operation.create_model.model_id, "type": "load_weights"}


def failure_to_json(error: OperationError) -> dict[str, Any]:
    """The answer of a failed future."""
    return {"error": error.message, "category": _CATEGORIES.get(error.category, "unknown")}


def try_again_to_json(request_id: str, state: QueueState.ValueType, reason: str) -> dict[str, Any]:
    """The answer of a future that is not done."""
    return {
        "type": "try_again",
        "request_id": request_id,
        "queue_state": _QUEUE_STATES.get(state, "active"),
        "queue_state_reason": reason or None,
    }


def model_to_json(model: Model) -> dict[str, Any]:
    """The answer of get_info."""
    return {
        "type": "get_info",
        "model_id": model.model_id,
        "model_data": {
            "arch": model.arch or None,
            "model_name": model.base_model,
            "tokenizer_id": model.tokenizer_id or None,
        },
        "is_lora": True,
        "lora_rank": model.lora_config.rank,
        "model_name": model.base_model,
        "optimizer_config": optimizer_config_to_json(model.optimizer_config),
    }


def optimizer_config_to_json(config: OptimizerConfig) -> dict[str, Any]:
    """An optimizer's config; "adamw" where none is named."""
    told: dict[str, Any] = {"type": config.type or "adamw"}
    for name, value in config.settings.items():
        if value.WhichOneof("value") == "text":
            told[name] = value.text
        else:
            told[name] = int(value.number) if value.number.is_integer() else number(value.number)
    return told
