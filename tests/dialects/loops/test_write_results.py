from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinkergate.dialects.loops.read_training import Mask, PassNote
from tinkergate.dialects.loops.write_results import (
    completion_to_json,
    failure_to_json,
    optim_step_to_json,
    pass_to_json,
)
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import ErrorReason, GatewayError
from tinkergate.tensors import batched_from_arrays, token_bytes
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

PLAIN = PassNote(summed=False, paired=False)


def output(*rows: list[float], loss: float = 6.0) -> ForwardBackwardOutput:
    arrays = [np.array(row, np.float32) for row in rows]
    record = ArrayRecord(num_datums=len(rows), fields={"logprobs": batched_from_arrays(arrays)})
    return ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=[record], metrics={"loss:sum": loss}
    )


def told(value: Any) -> Any:
    return read_json(write_json(value))


def test_a_pass() -> None:
    assert told(pass_to_json(output([-1, -2], [-3]), PLAIN)) == {
        "loss": 3.0,
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [
            {"logprobs": {"data": [-1, -2], "dtype": "float32", "shape": [2]}},
            {"logprobs": {"data": [-3], "dtype": "float32", "shape": [1]}},
        ],
        "metrics": {"loss": 3.0},
    }


def test_pairs_and_sums_and_masks() -> None:
    note = PassNote(True, True, (Mask.of(np.array([True, False]), math.nan), None))
    result = told(pass_to_json(output([-1, -2], [-3, -4]), note))
    assert result["loss"] == 6.0
    assert result["metrics"] == {"loss": 6.0, "skip_token_normalization": 1.0}
    rows = [entry["logprobs"]["data"] for entry in result["loss_fn_outputs"]]
    assert rows == [[None, -2], [-3, -4]]


def test_what_is_not_finite() -> None:
    result = told(pass_to_json(output([-math.inf, math.nan]), PLAIN))
    assert result["loss_fn_outputs"][0]["logprobs"]["data"] == [None, None]
    with pytest.raises(GatewayError) as caught:
        pass_to_json(output([-1], loss=math.nan), PLAIN)
    assert caught.value.reason == ErrorReason.ERROR_REASON_NOT_FINITE
    step = OptimStepResult(metrics={"grad_norm:mean": 2.0, "odd": math.inf})
    assert optim_step_to_json(step) == {"metrics": {"grad_norm:mean": 2.0}}


def test_a_failure() -> None:
    error = OperationError(message="no", reason=ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND)
    assert failure_to_json(error) == {
        "status": "error",
        "error": "no",
        "error_class": "CheckpointNotFoundError",
    }


def test_a_completion() -> None:
    response = SampleResponse(
        sequences=[
            SampledSequence(
                stop_reason=StopReason.STOP_REASON_STOP,
                tokens=token_bytes([5, 6]),
                logprobs=np.array([-1, -math.inf], np.float32).tobytes(),
            )
        ],
        prompt_logprobs=np.array([math.nan, -2], np.float32).tobytes(),
        topk_prompt_logprobs=TopkLogprobs(
            token_ids=token_bytes([0, 0, 9, 5]),
            logprobs=np.array([-99999, -99999, -0.5, -2], np.float32).tobytes(),
            k=2,
            length=2,
        ),
    )
    prompt = np.array([5, 5], np.int32)
    result = told(completion_to_json(response, prompt, model="m", created=7, texts=["hi"]))
    (choice,) = result["choices"]
    assert choice == {
        "index": 0,
        "finish_reason": "stop",
        "text": "hi",
        "token_ids": [5, 5, 5, 6],
        "logprobs": {"tokens": [5, 5, 5, 6], "token_logprobs": [None, None, -1.0, -9999.0]},
        "prompt_logprobs": [
            None,
            {
                "9": {"logprob": -0.5, "decoded_token": None, "rank": 1},
                "5": {"logprob": -2.0, "decoded_token": None, "rank": 2},
            },
        ],
    }
    assert result["usage"]["total_tokens"] == 4
    images = told(completion_to_json(response, None, model="m", created=7, texts=None))
    assert images["choices"][0]["token_ids"] == [5, 6]
    assert "text" not in images["choices"][0]
