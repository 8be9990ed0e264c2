"""Results of the contract in Loops' JSON (wire sections 5 and 8), for `json_text.write_json`, which
writes NaN as null.

Null stands in tensors only: a figure that is not finite has no form here and is left out, and a
loss that is not finite is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.dialects.loops.read_training import SKIP, PassNote
from tinkergate.dialects.loops.tensors_json import array_to_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.tensors import arrays_from_batched, floats_from_bytes, tokens_from_bytes
from tinkergate.v1 import (
    ArrayRecord,
    ForwardBackwardOutput,
    OperationError,
    OptimStepResult,
    SampledSequence,
    SampleResponse,
    StopReason,
    TopkLogprobs,
)

NO_ENTRY = -99999.0
"""The logprob of a place in a table of likeliest tokens where there is none."""

LEAST_LOGPROB = -9999.0
"""What a sampled token's logprob is told as that has no finite one: null would be refused."""

_STOP_REASONS = {
    StopReason.STOP_REASON_STOP: "stop",
    StopReason.STOP_REASON_LENGTH: "length",
}


def pass_to_json(output: ForwardBackwardOutput, note: PassNote) -> dict[str, Any]:
    """The result of forward and forward_backward. `loss` is the sum over the tokens divided by the
    number of datums, of pairs where the loss takes pairs: clients average it over the parts of a
    batch by that number (wire section 11). Raises GatewayError (NOT_FINITE) for a loss that is not
    finite."""
    outputs = list(chain.from_iterable(_records(record) for record in output.loss_fn_outputs))
    for datum, mask in zip(outputs, note.masks, strict=False):
        if mask is not None and "logprobs" in datum:
            datum["logprobs"] = mask.apply(datum["logprobs"])
    units = max(1, len(outputs) // 2 if note.paired else len(outputs))
    loss = output.metrics.get("loss:sum", 0.0) / units
    if not math.isfinite(loss):
        raise GatewayError(
            Kind.PRECONDITION, ErrorReason.ERROR_REASON_NOT_FINITE, f"the loss is {loss}"
        )
    metrics = {"loss": loss}
    if note.summed:
        metrics[SKIP] = 1.0
    return {
        "loss": loss,
        "loss_fn_output_type": output.loss_fn_output_type,
        "loss_fn_outputs": [
            {name: array_to_json(_told(array)) for name, array in datum.items()}
            for datum in outputs
        ],
        "metrics": metrics,
    }


def _records(record: ArrayRecord) -> list[dict[str, Any]]:
    columns = {name: arrays_from_batched(batched) for name, batched in record.fields.items()}
    count = record.num_datums or max((len(arrays) for arrays in columns.values()), default=0)
    return [{name: arrays[index] for name, arrays in columns.items()} for index in range(count)]


def _told(array: NDArray[Any]) -> NDArray[Any]:
    """Infinities as NaN: there is null for both."""
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return array
    return np.where(np.isfinite(array), array, np.float32(math.nan))


def optim_step_to_json(result: OptimStepResult) -> dict[str, Any]:
    """The result of optim_step."""
    return {"metrics": finite(result.metrics)}


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures that are finite."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def done_to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of an operation that has succeeded."""
    return {"status": "done", "result": result}


def failure_to_json(error: OperationError) -> dict[str, Any]:
    """The answer of an operation that has failed. `error_class` is the reason, in the form of a
    class's name."""
    reason = ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    words = "".join(word.capitalize() for word in reason.split("_"))
    return {"status": "error", "error": error.message or words, "error_class": f"{words}Error"}


def completion_to_json(
    response: SampleResponse,
    prompt: NDArray[np.int32] | None,
    *,
    model: str,
    created: int,
    texts: Sequence[str] | None,
) -> dict[str, Any]:
    """The result of sample. Each choice begins with `prompt` where its tokens are known, with null
    for their logprobs: clients cut it off, and would cut off a sampled sequence that happens to
    begin in the same way otherwise (wire section 8.3)."""
    choices = [
        _choice(sequence, prompt, index, None if texts is None else texts[index])
        for index, sequence in enumerate(response.sequences)
    ]
    if response.HasField("prompt_logprobs") and prompt is not None and choices:
        choices[0]["prompt_logprobs"] = _prompt_logprobs(response, prompt)
    read = 0 if prompt is None else int(prompt.size)
    drawn = sum(len(sequence.tokens) // 4 for sequence in response.sequences)
    return {
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": drawn,
            "total_tokens": read + drawn,
            "prompt_tokens_details": {"cached_tokens": response.prompt_cache_hit_tokens},
        },
    }


def _choice(
    sequence: SampledSequence, prompt: NDArray[np.int32] | None, index: int, text: str | None
) -> dict[str, Any]:
    tokens = tokens_from_bytes(sequence.tokens)
    before = np.empty(0, np.int32) if prompt is None else prompt
    ids = np.concatenate([before, tokens])
    told: dict[str, Any] = {
        "index": index,
        "finish_reason": _STOP_REASONS[sequence.stop_reason],
        "token_ids": ids,
    }
    if text is not None:
        told["text"] = text
    if sequence.HasField("logprobs"):
        drawn = np.nan_to_num(
            floats_from_bytes(sequence.logprobs),
            nan=LEAST_LOGPROB,
            posinf=0.0,
            neginf=LEAST_LOGPROB,
        )
        none = np.full(before.size, math.nan, np.float32)
        told["logprobs"] = {"tokens": ids, "token_logprobs": np.concatenate([none, drawn])}
    return told


def _prompt_logprobs(
    response: SampleResponse, prompt: NDArray[np.int32]
) -> list[dict[str, Any] | None]:
    """For each token of the prompt its own logprob, and those of the likeliest with their ranks,
    by token id; null where there is none."""
    own = floats_from_bytes(response.prompt_logprobs).tolist()
    rows: list[dict[str, Any]] = [{} for _ in own]
    if response.HasField("topk_prompt_logprobs"):
        rows = _likeliest(response.topk_prompt_logprobs, len(own))
    told: list[dict[str, Any] | None] = []
    for token, logprob, row in zip(prompt.tolist(), own, rows, strict=True):
        if not math.isfinite(logprob):
            told.append(None)
            continue
        row.setdefault(str(token), {"logprob": logprob, "decoded_token": None})
        told.append(row)
    return told


def _likeliest(table: TopkLogprobs, length: int) -> list[dict[str, Any]]:
    shape = (table.length, table.k)
    if table.length != length:
        return [{} for _ in range(length)]
    tokens = tokens_from_bytes(table.token_ids).reshape(shape).tolist()
    logprobs = floats_from_bytes(table.logprobs).reshape(shape).tolist()
    return [
        {
            str(token): {"logprob": logprob, "decoded_token": None, "rank": rank}
            for rank, (token, logprob) in enumerate(zip(*row, strict=True), 1)
            if logprob != NO_ENTRY and math.isfinite(logprob)
        }
        for row in zip(tokens, logprobs, strict=True)
    ]
