"""Results that the door writes are read back to the bit, and what makes no sense is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinkergate.dialects.tinker import read_results as read
from tinkergate.dialects.tinker.json_text import write_json
from tinkergate.dialects.tinker.write_results import (
    forward_backward_to_json,
    reverse_kl_to_json,
    sample_to_json,
)
from tinkergate.errors import GatewayError
from tinkergate.tensors import arrays_from_batched, batched_from_arrays, token_bytes
from tinkergate.v1 import (
    ArrayRecord,
    ForwardBackwardOutput,
    SampledSequence,
    SampleResponse,
    StopReason,
    TopkLogprobs,
)


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def output(arrays: list[np.ndarray[Any, Any]], name: str = "logprobs") -> ForwardBackwardOutput:
    record = ArrayRecord(fields={name: batched_from_arrays(arrays)}, num_datums=len(arrays))
    return ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[record],
        metrics={"loss:sum": 0.1, "e:mean": 2.0},
    )


def arrays_of(message: ForwardBackwardOutput, name: str = "logprobs") -> list[Any]:
    return [
        row
        for record in message.loss_fn_outputs
        for row in arrays_from_batched(record.fields[name])
    ]


RANDOM = np.random.default_rng(0)
LOGPROBS = [RANDOM.normal(size=size).astype(np.float32) for size in (3, 1, 700)]


def test_json_gives_the_same_bits_as_protobuf() -> None:
    message = output([*LOGPROBS, np.array([np.nan, -np.inf, 1e-45], np.float32)])
    told = write_json(forward_backward_to_json(message))
    for got in (
        read.output_from_json(told, 4),
        read.output_from_protobuf(message.SerializeToString(), 4),
    ):
        assert got.metrics == message.metrics
        for row, wanted in zip(arrays_of(got), arrays_of(message), strict=True):
            assert row.tobytes() == wanted.tobytes()


def test_arrays_that_do_not_go_together_come_in_records_of_their_own() -> None:
    rows = [{"logprobs": np.zeros((2, 3))}, {"logprobs": np.zeros((2, 4))}, {"x": np.zeros(1)}]
    told = {
        "loss_fn_outputs": [
            {
                name: {"data": array.reshape(-1), "dtype": "float32", "shape": list(array.shape)}
                for name, array in row.items()
            }
            for row in rows
        ],
        "loss_fn_output_type": "ArrayRecord",
        "metrics": {},
    }
    records = read.output_from_json(write_json(told), 3).loss_fn_outputs
    assert [record.num_datums for record in records] == [1, 1, 1]
    assert list(records[1].fields["logprobs"].trailing_shape) == [4]


def test_metrics_that_no_client_can_read_are_left_out() -> None:
    message = output(LOGPROBS)
    message.metrics.update({"loss": 1.0, "a:b:c": 2.0})
    got = read.output_from_protobuf(message.SerializeToString(), 3)
    assert set(got.metrics) == {"loss:sum", "e:mean"}


@pytest.mark.parametrize("datums", [2, 4])
def test_a_result_of_another_number_of_datums_is_none(datums: int) -> None:
    message = output(LOGPROBS)
    with pytest.raises(GatewayError, match="has 3 datums"):
        read.output_from_protobuf(message.SerializeToString(), datums)
    with pytest.raises(GatewayError, match="has 3 datums"):
        read.output_from_json(write_json(forward_backward_to_json(message)), datums)


def test_records_that_do_not_say_their_number_are_counted() -> None:
    message = output(LOGPROBS)
    message.loss_fn_outputs[0].ClearField("num_datums")
    got = read.output_from_protobuf(message.SerializeToString(), 3)
    assert got.loss_fn_outputs[0].num_datums == 3


@pytest.mark.parametrize("body", [b"", b"\x00<html>", b"[]", b'{"loss_fn_outputs": 3}', b"{}"])
def test_what_is_no_result_is_told(body: bytes) -> None:
    with pytest.raises(GatewayError):
        read.output_from_json(body, 1)
    with pytest.raises(GatewayError):
        read.response_from_json(body, 1, 0)


def test_protobuf_that_is_cut_short_is_told() -> None:
    body = output(LOGPROBS).SerializeToString()
    for cut in range(0, len(body), 37):
        with pytest.raises(GatewayError):
            read.output_from_protobuf(body[:cut], 3)


def test_reverse_kl_is_read_back_and_has_a_sum() -> None:
    message = output([np.array([0.25], np.float32), np.array([0.5], np.float32)], "loss")
    told = reverse_kl_to_json(message)
    got = read.reverse_kl_output_from_json(write_json(told), 2)
    assert [row.tolist() for row in arrays_of(got, "loss")] == [[0.25], [0.5]]
    assert got.metrics["loss:sum"] == 0.1
    # As MinT's package reads it: a bare number will do, and no dtype.
    bare = {"outputs": [{"loss": {"data": 0.25}}, {"loss": {"data": [0.5]}}], "metrics": {}}
    got = read.reverse_kl_output_from_json(write_json(bare), 2)
    assert [row.tolist() for row in arrays_of(got, "loss")] == [[0.25], [0.5]]
    assert got.metrics["loss:sum"] == 0.75


def test_samples_are_read_back_to_the_bit() -> None:
    response = SampleResponse(
        sequences=[
            SampledSequence(
                stop_reason=StopReason.STOP_REASON_LENGTH,
                tokens=token_bytes([1, 2]),
                logprobs=floats(-0.1, -1e-7),
            ),
            SampledSequence(stop_reason=StopReason.STOP_REASON_STOP, tokens=token_bytes([7])),
        ],
        prompt_logprobs=floats(np.nan, -2.3, -4.56),
        topk_prompt_logprobs=TopkLogprobs(
            token_ids=token_bytes([0, 0, 5, 6, 7, 8]),
            logprobs=floats(-99999, -99999, -0.1, -0.2, -0.3, -0.4),
            k=2,
            length=3,
        ),
    )
    got = read.response_from_json(write_json(sample_to_json(response)), 2, 2)
    assert got == response
    assert read.response_from_protobuf(response.SerializeToString(), 2) == response
    with pytest.raises(GatewayError, match="has 2; 3 were asked for"):
        read.response_from_protobuf(response.SerializeToString(), 3)


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        ({"stop_reason": "tired", "tokens": []}, "must be stop or length"),
        ({"stop_reason": "stop", "tokens": [1.5]}, "tokens"),
        ({"stop_reason": "stop", "tokens": [1], "logprobs": [1.0, 2.0]}, "as many as"),
        ({"stop_reason": "stop"}, "tokens: is not given"),
    ],
)
def test_a_wrong_sequence_is_told_by_its_place(sequence: Any, words: str) -> None:
    with pytest.raises(GatewayError, match=rf"sequences\[0\].*{words}"):
        read.response_from_json(write_json({"sequences": [sequence]}), 1, 0)


@pytest.mark.parametrize("row", [[[1, -0.5], [2, -0.6], [3, -0.7]], [[1]], "x", [[1, "y"]]])
def test_wrong_likeliest_tokens_are_told_by_their_place(row: Any) -> None:
    told = {"sequences": [], "topk_prompt_logprobs": [None, row]}
    with pytest.raises(GatewayError, match=r"topk_prompt_logprobs\[1\]"):
        read.response_from_json(write_json(told), 0, 2)


def test_models_without_a_name_are_left_out() -> None:
    told = {
        "supported_models": [
            {"model_name": "a", "max_context_length": 10, "trainable": False},
            {"max_context_length": 3},
            {"model_name": "b"},
        ]
    }
    first, second = read.models_from_json(write_json(told))
    assert (first.name, first.max_context_length, first.trainable) == ("a", 10, False)
    assert (second.name, second.trainable, second.sampleable) == ("b", True, True)


def test_weights_that_are_no_adapter_are_refused() -> None:
    told = {"base_model": "b", "is_lora": True, "lora_rank": 8, "train_mlp": False}
    config = read.lora_from_weights_info(write_json(told))
    assert (config.rank, config.train_mlp, config.HasField("train_attn")) == (8, False, False)
    with pytest.raises(GatewayError, match="no LoRA adapter"):
        read.lora_from_weights_info(write_json({**told, "is_lora": False}))
