from __future__ import annotations

import math

import numpy as np
import pytest

from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.dialects.tinker.write_results import (
    failure_to_json,
    forward_backward_to_json,
    model_to_json,
    operation_to_json,
    sample_to_json,
    try_again_to_json,
)
from tinkergate.tensors import batched_from_arrays, token_bytes
from tinkergate.v1 import (
    ArrayRecord,
    FailureCategory,
    ForwardBackwardOutput,
    LoraConfig,
    Model,
    Operation,
    OperationError,
    OptimizerConfig,
    OptimStepResult,
    QueueState,
    SampledSequence,
    SampleResponse,
    SaveStateResult,
    SaveWeightsForSamplerResult,
    StopReason,
    TopkLogprobs,
)


def told(value: object) -> object:
    return read_json(write_json(value))


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def record(*arrays: list[float] | list[list[float]]) -> ArrayRecord:
    batched = batched_from_arrays([np.array(array, np.float32) for array in arrays])
    return ArrayRecord(fields={"logprobs": batched}, num_datums=len(arrays))


def test_outputs_are_told_by_datum_across_records() -> None:
    output = ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[
            record([-1.0], [-2.0, -3.5]),
            ArrayRecord(num_datums=1),
            record([[-4.0, -5.0]]),
        ],
        metrics={"loss:sum": 1.5},
    )

    def logprobs(data: list[float], shape: list[int]) -> dict[str, object]:
        return {"logprobs": {"data": data, "dtype": "float32", "shape": shape}}

    assert told(forward_backward_to_json(output)) == {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [
            logprobs([-1.0], [1]),
            logprobs([-2.0, -3.5], [2]),
            {},
            logprobs([-4.0, -5.0], [1, 2]),
        ],
        "metrics": {"loss:sum": 1.5},
    }


def test_figures_that_are_not_finite_reach_the_client_as_they_are() -> None:
    operation = Operation(
        optim_step=OptimStepResult(metrics={"grad_norm:mean": math.inf, "x:mean": -math.inf})
    )

    assert told(operation_to_json(operation)) == {
        "metrics": {"grad_norm:mean": math.inf, "x:mean": -math.inf}
    }
    output = ForwardBackwardOutput(loss_fn_outputs=[record([math.nan])])
    assert b'"data":[NaN]' in write_json(forward_backward_to_json(output))


def test_what_a_sample_was_not_asked_for_is_left_out() -> None:
    response = SampleResponse(
        sequences=[
            SampledSequence(
                stop_reason=StopReason.STOP_REASON_STOP,
                tokens=token_bytes([7, 8]),
                logprobs=floats(-0.5, -0.25),
            )
        ]
    )

    assert told(sample_to_json(response)) == {
        "type": "sample",
        "sequences": [{"stop_reason": "stop", "tokens": [7, 8], "logprobs": [-0.5, -0.25]}],
        "prompt_cache_hit_tokens": 0,
    }


def test_places_without_an_entry_are_told_as_null_or_left_out() -> None:
    table = TopkLogprobs(
        token_ids=token_bytes([0, 0, 5, 6, 9, 0]),
        logprobs=floats(-99999, -99999, -0.5, -1.5, -2, -99999),
        k=2,
        length=3,
    )
    response = SampleResponse(
        prompt_logprobs=floats(math.nan, -1, math.nan), topk_prompt_logprobs=table
    )

    result = sample_to_json(response)

    assert told(result["prompt_logprobs"]) == [None, -1, None]
    assert told(result["topk_prompt_logprobs"]) == [None, [[5, -0.5], [6, -1.5]], [[9, -2]]]
    empty = SampleResponse(topk_prompt_logprobs=TopkLogprobs())
    assert sample_to_json(empty)["topk_prompt_logprobs"] is None


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (
            Operation(save_state=SaveStateResult(path="tinker://m/weights/a")),
            {"path": "tinker://m/weights/a", "type": "save_weights"},
        ),
        (
            Operation(
                save_weights_for_sampler=SaveWeightsForSamplerResult(sampler_id="s:sample:0")
            ),
            {
                "path": None,
                "sampling_session_id": "s:sample:0",
                "type": "save_weights_for_sampler",
            },
        ),
    ],
)
def test_results_have_the_form_of_their_route(
    operation: Operation, expected: dict[str, object]
) -> None:
    assert told(operation_to_json(operation)) == expected


@pytest.mark.parametrize(
    ("category", "name"),
    [
        (FailureCategory.FAILURE_CATEGORY_USER, "user"),
        (FailureCategory.FAILURE_CATEGORY_SERVER, "server"),
        (FailureCategory.FAILURE_CATEGORY_UNKNOWN, "unknown"),
        (FailureCategory.FAILURE_CATEGORY_UNSPECIFIED, "unknown"),
    ],
)
def test_a_failure_says_whose_fault_it_is(category: FailureCategory.ValueType, name: str) -> None:
    error = OperationError(message="no", category=category)

    assert failure_to_json(error) == {"error": "no", "category": name}


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (QueueState.QUEUE_STATE_UNSPECIFIED, "active"),
        (QueueState.QUEUE_STATE_ACTIVE, "active"),
        (QueueState.QUEUE_STATE_PAUSED_CAPACITY, "paused_capacity"),
        (QueueState.QUEUE_STATE_PAUSED_RATE_LIMIT, "paused_rate_limit"),
    ],
)
def test_why_a_future_waits_is_passed_on(state: QueueState.ValueType, name: str) -> None:
    assert try_again_to_json("r", state, "no worker") == {
        "type": "try_again",
        "request_id": "r",
        "queue_state": name,
        "queue_state_reason": "no worker",
    }


def test_a_model_tells_its_tokenizer_and_its_optimizer() -> None:
    config = OptimizerConfig(type="dimuon")
    config.settings["version"].number = 1
    config.settings["mode"].text = "x"
    model = Model(
        model_id="s:train:0",
        base_model="micro",
        tokenizer_id="tok",
        arch="LlamaForCausalLM",
        lora_config=LoraConfig(rank=8),
        optimizer_config=config,
    )

    assert told(model_to_json(model)) == {
        "type": "get_info",
        "model_id": "s:train:0",
        "model_data": {"arch": "LlamaForCausalLM", "model_name": "micro", "tokenizer_id": "tok"},
        "is_lora": True,
        "lora_rank": 8,
        "model_name": "micro",
        "optimizer_config": {"type": "dimuon", "version": 1, "mode": "x"},
    }
