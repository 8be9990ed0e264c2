from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinkergate.dialects.loops import write_requests as write
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import ErrorReason, GatewayError
from tinkergate.tensors import tensor_from_array, token_bytes
from tinkergate.v1 import (
    AdamParams,
    Chunk,
    Datum,
    DmelChunk,
    EncodedTextChunk,
    ImageAssetPointerChunk,
    ImageChunk,
    ImageDimensions,
    ModelInput,
    OptimStepRequest,
    SampleRequest,
    SamplingParams,
    StopStrings,
    StopTokens,
)


def text(*tokens: int) -> Chunk:
    return Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))


def image(**fields: Any) -> Chunk:
    told = {"data": b"\xfb\xff", "format": "png", "expected_tokens": 4, **fields}
    return Chunk(image=ImageChunk(**{k: v for k, v in told.items() if v is not None}))


def datum(targets: Any, weights: Any = None) -> Datum:
    targets = np.asarray(targets, np.int64)
    inputs = {"target_tokens": tensor_from_array(targets)}
    if weights is not None:
        inputs["weights"] = tensor_from_array(np.asarray(weights, np.float32))
    return Datum(model_input=[text(*range(len(targets)))], loss_fn_inputs=inputs)


def as_sent(told: Any) -> Any:
    return read_json(write_json(told))


def test_a_datum_has_every_key_of_the_official_clients() -> None:
    told = as_sent(write.datum_json(datum([2, 3], [0.0, -0.0]), "data[0]"))

    assert told == {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [0, 1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": [2, 3], "dtype": "int64", "shape": [2]},
            "weights": {"data": [0.0, -0.0], "dtype": "float32", "shape": [2]},
        },
        "routed_experts_ref": None,
    }


def test_weights_that_are_not_given_are_told_as_ones() -> None:
    told = as_sent(write.datum_json(datum([[2, 3], [4, 5], [6, 7]]), "data[0]"))

    assert told["loss_fn_inputs"]["weights"] == {
        "data": [1.0] * 6,
        "dtype": "float32",
        "shape": [3, 2],
    }


def test_an_infinite_weight_is_told_with_its_place() -> None:
    with pytest.raises(GatewayError, match=r'data\[4\].loss_fn_inputs\["weights"\]: element 1'):
        write.datum_json(datum([2, 3], [0.0, np.inf]), "data[4]")


def test_sums_are_asked_for_unless_gradients_are_taken_per_token() -> None:
    [part] = write.parts_of([datum([2, 3])])

    assert as_sent(write.forward_backward_json(part, per_token=False)) == {
        "data": [as_sent(write.datum_json(datum([2, 3]), ""))],
        "loss_fn": "cross_entropy",
        "loss_fn_config": {"skip_token_normalization": True},
        "top_k_logprobs": 0,
    }
    assert write.forward_backward_json(part, per_token=True)["loss_fn_config"] is None


def test_parts_are_neighbours_that_fit_into_a_body() -> None:
    data = [datum(list(range(n))) for n in (3, 40, 5, 60, 2, 2, 2)]
    limit = 4096 + 900

    parts = write.parts_of(data, limit)

    assert 1 < len(parts) < len(data)
    assert sum(part.datums for part in parts) == len(data)
    rows = [row for part in parts for row in as_sent(part.data)]
    assert rows == [as_sent(write.datum_json(each, "")) for each in data]
    for part in parts:
        assert len(write_json(write.forward_backward_json(part, per_token=False))) <= limit


def test_datums_of_one_body_have_targets_of_one_width() -> None:
    one, two = datum([1, 2]), datum([[1, 2], [3, 4]])

    parts = write.parts_of([one, one, two, two, one])

    assert [part.datums for part in parts] == [2, 2, 1]


def test_the_largest_body_is_that_of_the_official_client() -> None:
    tokens = np.full(1_200_000, 1234567, np.int64)
    large = Datum(
        model_input=[Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))],
        loss_fn_inputs={"target_tokens": tensor_from_array(np.zeros(1, np.int64))},
    )

    parts = write.parts_of([large] * 5)

    assert [part.datums for part in parts] == [2, 2, 1]
    for part in parts:
        body = write_json(write.forward_backward_json(part, per_token=False))
        assert len(body) <= 25_165_824


def test_a_datum_that_is_too_large_alone_is_refused_by_its_place() -> None:
    with pytest.raises(GatewayError, match=r"data\[1\]: takes \d+ bytes") as caught:
        write.parts_of([datum([1]), datum(list(range(300)))], 4096 + 500)

    assert caught.value.reason == ErrorReason.ERROR_REASON_TOO_LARGE


def test_images_are_in_standard_base64_and_say_how_many_tokens_they_are() -> None:
    assert write.chunk_json(image(), "x") == {
        "type": "image",
        "data": "+/8=",
        "format": "png",
        "expected_tokens": 4,
    }


@pytest.mark.parametrize(
    ("chunk", "told"),
    [
        (image(expected_tokens=None), "x.image.expected_tokens: is not given; Loops needs it"),
        (image(expected_tokens=0), "x.image.expected_tokens: is 0; Loops needs it, from 1"),
        (image(format="gif"), "x.image.format: is 'gif'; Loops takes"),
        (
            image(override_dimensions=ImageDimensions(width=1, height=1)),
            "x.image.override_dimensions: has no form at Loops",
        ),
        (Chunk(dmel=DmelChunk(dmel=b"x")), "x.dmel: has no form at Loops"),
        (
            Chunk(image_asset_pointer=ImageAssetPointerChunk(format="png", location="y")),
            "x.image_asset_pointer: has no form at Loops",
        ),
        (Chunk(), "x.chunk: has no form at Loops"),
    ],
)
def test_chunks_without_a_form_are_refused(chunk: Chunk, told: str) -> None:
    with pytest.raises(GatewayError) as caught:
        write.chunk_json(chunk, "x")

    assert str(caught.value).startswith(told)


def test_all_six_numbers_of_adam_are_always_told_and_nothing_clips_unasked() -> None:
    assert write.optim_step_json(OptimStepRequest()) == {
        "adam_params": {
            "learning_rate": 1e-4,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-12,
            "weight_decay": 0.0,
            "grad_clip_norm": 0.0,
        }
    }
    request = OptimStepRequest(adam=AdamParams(learning_rate=0.0, grad_clip_norm=2.0))
    told = write.optim_step_json(request)["adam_params"]
    assert (told["learning_rate"], told["grad_clip_norm"], told["beta2"]) == (0.0, 2.0, 0.95)


def _sample(params: SamplingParams | None = None, **fields: Any) -> Any:
    chunks = fields.pop("chunks", [text(1, 2), text(3)])
    request = SampleRequest(prompt=ModelInput(chunks=chunks), sampling_params=params, **fields)
    return as_sent(write.sample_json(request, 16))


def test_a_sample_call_says_what_the_service_would_otherwise_choose() -> None:
    assert _sample() == {
        "prompt": [1, 2, 3],
        "n": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "logprobs": 0,
        "return_tokens_as_token_ids": True,
        "max_tokens": 16,
    }


def test_a_sample_call_says_what_was_asked_for() -> None:
    params = SamplingParams(
        seed=2**63, temperature=0.0, top_p=0.5, top_k=7, stop_strs=StopStrings(values=["a", "b"])
    )

    told = _sample(params, num_samples=3, prompt_logprobs=True)

    assert (told["n"], told["seed"], told["temperature"], told["top_p"]) == (3, 2**63, 0.0, 0.5)
    assert (told["top_k"], told["stop"], told["prompt_logprobs"]) == (7, ["a", "b"], 0)
    assert "stop_token_ids" not in told


@pytest.mark.parametrize("top_k", [-1, 0])
def test_no_top_k_is_not_told(top_k: int) -> None:
    assert "top_k" not in _sample(SamplingParams(top_k=top_k))


def test_stop_tokens_are_no_stop_strings() -> None:
    told = _sample(SamplingParams(stop_tokens=StopTokens(values=[5, 6])))

    assert told["stop_token_ids"] == [5, 6]
    assert "stop" not in told


def test_likeliest_prompt_tokens_alone_ask_for_prompt_logprobs() -> None:
    assert _sample(topk_prompt_logprobs=5)["prompt_logprobs"] == 5


def test_a_prompt_with_an_image_is_told_in_chunks() -> None:
    told = _sample(chunks=[text(1), image()])

    assert told["prompt"] == []
    assert [chunk["type"] for chunk in told["model_input_chunks"]] == ["encoded_text", "image"]
    assert told["return_token_ids"] is True
