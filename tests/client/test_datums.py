from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinkergate.tensors import array_from_tensor, tokens_from_bytes
from tinkergate_client import Datum, datum, image, model_input, supervised_datum


def inputs(example: Datum) -> dict[str, np.ndarray]:
    return {name: array_from_tensor(tensor) for name, tensor in example.loss_fn_inputs.items()}


def tokens(example: Datum) -> list[int]:
    (chunk,) = example.model_input
    return tokens_from_bytes(chunk.encoded_text.tokens).tolist()


def test_a_supervised_datum_predicts_each_token_from_those_before() -> None:
    example = supervised_datum([5, 6, 7, 8], [0, 0, 1, 1])
    assert tokens(example) == [5, 6, 7]
    arrays = inputs(example)
    assert arrays["target_tokens"].tolist() == [6, 7, 8]
    assert arrays["target_tokens"].dtype == np.int64
    assert arrays["weights"].tolist() == [0, 1, 1]
    assert arrays["weights"].dtype == np.float32


def test_the_mask_may_weigh_and_be_of_booleans() -> None:
    assert inputs(supervised_datum([1, 2, 3], [0, 0.5, 2]))["weights"].tolist() == [0.5, 2]
    assert inputs(supervised_datum([1, 2], np.array([True, True])))["weights"].tolist() == [1]


def test_a_datum_takes_k_targets_a_position_and_other_inputs() -> None:
    targets = np.array([[1, 2], [3, 4]], dtype=np.int32)
    arrays = inputs(datum([8, 9], targets, np.ones((2, 2)), advantages=[0.5, -1]))
    assert arrays["target_tokens"].tolist() == [[1, 2], [3, 4]]
    assert arrays["weights"].shape == (2, 2)
    assert arrays["advantages"].tolist() == [0.5, -1]


def test_without_weights_none_are_sent() -> None:
    assert set(inputs(datum([1], [2]))) == {"target_tokens"}


def test_a_model_input_may_mix_tokens_and_images() -> None:
    parts = model_input([1, 2], image(b"...", "png", expected_tokens=7), np.array([3]))
    assert [chunk.WhichOneof("chunk") for chunk in parts.chunks] == [
        "encoded_text",
        "image",
        "encoded_text",
    ]
    assert list(datum(parts, [0]).model_input) == list(parts.chunks)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([1, -1], r"tokens\[1\] is -1; must lie in 0..2147483647"),
        ([2**31], r"tokens\[0\] is 2147483648"),
        ([0.5], "tokens has dtype float64; must be integers"),
        ([[1], [2]], r"tokens has shape \(2, 1\); must have one dimension"),
        (["a"], "tokens has dtype"),
    ],
)
def test_what_are_no_token_ids_is_refused(bad: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model_input(bad)


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        ([1], [1], "tokens has 1 entries; must have at least 2"),
        ([], [], "tokens has 0 entries"),
        ([1, 2], [1], r"loss_mask has shape \(1,\); must be that of tokens, \(2,\)"),
        ([1, 2], ["a", "b"], "loss_mask has dtype .*; must be numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(ids: Any, mask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        supervised_datum(ids, mask)
