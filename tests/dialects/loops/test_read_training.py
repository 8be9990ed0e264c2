from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinkergate.dialects.loops import write_requests as write
from tinkergate.dialects.loops.read_training import Mask, PassNote, pass_request, token_counts
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import GatewayError
from tinkergate.tensors import array_from_tensor, tensor_from_array, token_bytes
from tinkergate.v1 import Chunk, Datum, EncodedTextChunk, ForwardBackwardRequest, Normalization

SUM = Normalization.NORMALIZATION_SUM
PER_TOKEN = Normalization.NORMALIZATION_PER_TOKEN


def read(datum: dict[str, Any], **more: Any) -> tuple[Any, PassNote]:
    body = {"data": [datum], "loss_fn": "cross_entropy", **more}
    return pass_request(Fields(read_json(write_json(body))), forward_only=False)


def datum(tokens: list[int], **inputs: Any) -> dict[str, Any]:
    told = {
        name: {
            "data": values,
            "dtype": "int64" if name == "target_tokens" else "float32",
            "shape": list(np.shape(values)),
        }
        for name, values in inputs.items()
    }
    chunk = {"type": "encoded_text", "tokens": tokens}
    return {"model_input": {"chunks": [chunk]}, "loss_fn_inputs": told}


def inputs(request: Any) -> dict[str, list[Any]]:
    return {
        name: array_from_tensor(tensor).tolist()
        for name, tensor in request.data[0].loss_fn_inputs.items()
    }


def test_what_the_backend_writes_is_what_the_door_reads() -> None:
    sent = Datum(
        model_input=[Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes([5, 6, 7])))],
        loss_fn_inputs={
            "target_tokens": tensor_from_array(np.array([6, 7, 8])),
            "weights": tensor_from_array(np.array([0.5, -1.0, 0.0], np.float32)),
        },
    )
    (part,) = write.parts_of([sent])
    for per_token, normalization in ((False, SUM), (True, PER_TOKEN)):
        body = write.forward_backward_json(part, per_token=per_token)
        request, note = pass_request(Fields(read_json(write_json(body))), forward_only=False)
        expected = ForwardBackwardRequest(
            data=[sent], loss_fn="cross_entropy", normalization=normalization
        )
        assert request == expected
        assert note == PassNote(summed=not per_token, paired=False)


@pytest.mark.parametrize(
    ("config", "normalization"),
    [
        (None, PER_TOKEN),
        ({}, PER_TOKEN),
        ({"skip_token_normalization": False}, PER_TOKEN),
        ({"skip_token_normalization": True}, SUM),
    ],
)
def test_normalization(config: Any, normalization: int) -> None:
    request, note = read(datum([1, 2], target_tokens=[2, 3]), loss_fn_config=config)
    assert request.normalization == normalization
    assert note.summed == (normalization == SUM)
    assert not request.loss_fn_config


def test_settings_of_other_losses_are_kept() -> None:
    told = datum([1, 2], target_tokens=[2, 3], logprobs=[-1, -2], advantages=[1, 1])
    request, _ = read(told, loss_fn="ppo", loss_fn_config={"clip_low_threshold": 0.7})
    assert request.loss_fn_config["clip_low_threshold"].number == 0.7
    assert request.normalization == PER_TOKEN


def test_ignored_targets() -> None:
    request, note = read(datum([1, 2, 3], target_tokens=[-100, 3, -100]))
    assert inputs(request) == {"target_tokens": [0, 3, 0], "weights": [0.0, 1.0, 0.0]}
    weighted = datum([1, 2, 3], target_tokens=[-100, 3, 4], weights=[9.0, 0.5, 0.0])
    request, note = read(weighted)
    assert inputs(request) == {"target_tokens": [0, 3, 4], "weights": [0.0, 0.5, 0.0]}
    (mask,) = note.masks
    assert mask is not None
    told = mask.apply(np.array([-1, -2, -3], np.float32))
    np.testing.assert_array_equal(told, np.array([np.nan, -2, -3], np.float32))


def test_weights_of_another_shape_are_left_to_be_refused() -> None:
    request, _ = read(datum([1, 2], target_tokens=[-100, 3], weights=[1.0]))
    assert inputs(request)["weights"] == [1.0]


def test_ignored_targets_of_several_a_token() -> None:
    request, note = read(datum([1, 2], target_tokens=[[-100, 3], [4, 5]]))
    assert inputs(request)["weights"] == [[0.0, 1.0], [1.0, 1.0]]
    (mask,) = note.masks
    assert mask is not None
    assert np.isnan(mask.apply(np.zeros((2, 2), np.float32))).tolist() == [
        [True, False],
        [False, False],
    ]


def test_no_targets() -> None:
    request, note = read(datum([7, 8, 9]))
    assert inputs(request) == {"target_tokens": [8, 9, 0], "weights": [1.0, 1.0, 0.0]}
    request, _ = read(datum([7, 8, 9], weights=[0.5, 0.5, 3.0]))
    assert inputs(request)["weights"] == [0.5, 0.5, 0.0]
    (mask,) = note.masks
    assert mask is not None
    assert mask.apply(np.full(3, -1, np.float32)).tolist() == [-1, -1, 0]


def test_advantages() -> None:
    told = datum([1, 2, 3], target_tokens=[2, 3, 4], logprobs=[-1] * 3, advantages=[0.5], mask=[1])
    request, note = read(told, loss_fn="importance_sampling")
    assert inputs(request)["advantages"] == [0.5] * 3
    assert "mask" not in inputs(request)
    assert note.masks == ()
    none = datum([1, 2], target_tokens=[2, 3], logprobs=[-1] * 2, advantages=[0.0])
    _, note = read(none, loss_fn="dro")
    (mask,) = note.masks
    assert mask is not None
    assert mask.apply(np.full(2, -1, np.float32)).tolist() == [0, 0]


def test_a_mask_is_small() -> None:
    places = np.zeros(100_000, bool)
    places[:60_000] = True
    mask = Mask.of(places, 0.0)
    assert mask is not None
    assert len(mask.packed) < 200
    assert Mask.of(np.zeros(5, bool), 0.0) is None


def test_token_counts_hold_images() -> None:
    told = datum([1, 2], target_tokens=[2, 3, 4, 5, 6])
    image = {"type": "image", "data": "iVBOR/v/", "format": "png", "expected_tokens": 3}
    told["model_input"]["chunks"].append(image)
    request, _ = read(told)
    assert token_counts(request) == [5]


@pytest.mark.parametrize(
    ("change", "more", "field"),
    [
        ({}, {"loss_fn": "gspo"}, "loss_fn"),
        ({}, {"top_k_logprobs": 2}, "top_k_logprobs"),
        ({}, {"loss_fn_config": {"skip_token_normalization": 1}}, "skip_token_normalization"),
        ({"routed_experts_ref": {"uri": "bt://x", "version": 1}}, {}, "routed_experts_ref"),
        ({"model_input": {"chunks": [{"type": "dmel", "dmel": ""}]}}, {}, "chunks[0].type"),
        (
            {"model_input": {"chunks": [{"type": "image", "data": "", "format": "png"}]}},
            {},
            "expected_tokens",
        ),
        ({"loss_fn_inputs": {"target_tokens": [1, 2]}}, {}, "target_tokens"),
    ],
)
def test_what_is_refused(change: dict[str, Any], more: dict[str, Any], field: str) -> None:
    with pytest.raises(GatewayError) as caught:
        read({**datum([1, 2], target_tokens=[2, 3]), **change}, **more)
    assert field in caught.value.violations[0].field
