"""Every broken rule is named with its path; whatever is right passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkergate.core.validation.facts import Abilities, Facts
from tinkergate.core.validation.training import check_training_request
from tinkergate.errors import MAX_VIOLATIONS, GatewayError, Kind
from tinkergate.tensors import tensor_from_array, token_bytes
from tinkergate.v1 import (
    BackendCapabilities,
    Chunk,
    Datum,
    DType,
    EncodedTextChunk,
    ForwardBackwardRequest,
    ImageChunk,
    LossCapability,
    LossSetting,
    Normalization,
    SparseCsr,
    Tensor,
)

VOCAB, CONTEXT = 50, 8
LOSSES = [
    LossCapability(
        name="cross_entropy", required_inputs=["target_tokens"], optional_inputs=["weights"]
    ),
    LossCapability(
        name="ppo",
        required_inputs=["target_tokens", "logprobs", "advantages"],
        config_keys=["clip_low_threshold"],
    ),
    LossCapability(
        name="dpo",
        required_inputs=["target_tokens", "weights"],
        config_keys=["beta", "label_smoothing", "form"],
        settings=[
            LossSetting(name="beta", default_value=0.1, minimum=0),
            LossSetting(name="label_smoothing", default_value=0, minimum=0, maximum=0.5),
        ],
        paired=True,
        single_target=True,
    ),
]


def facts(**fields: Any) -> Facts:
    capabilities = BackendCapabilities(name="books", losses=LOSSES, **fields)
    return Facts(Abilities(capabilities), VOCAB, CONTEXT)


def text(*tokens: int) -> Chunk:
    return Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))


def datum(count: int = 3, **inputs: Any) -> Datum:
    arrays = {
        "target_tokens": np.arange(count),
        "weights": np.ones(count, np.float32),
    } | inputs
    return Datum(
        model_input=[text(*range(count))],
        loss_fn_inputs={
            name: value if isinstance(value, Tensor) else tensor_from_array(value)
            for name, value in arrays.items()
            if value is not None
        },
    )


def request(*data: Datum, loss: str = "cross_entropy", **fields: Any) -> ForwardBackwardRequest:
    return ForwardBackwardRequest(model_id="m", data=data, loss_fn=loss, **fields)


def violations(asked: ForwardBackwardRequest, **fields: Any) -> dict[str, str]:
    try:
        check_training_request(asked, facts(**fields), "adamw")
    except GatewayError as error:
        if error.kind is not Kind.INVALID:
            raise
        return {violation.field: violation.description for violation in error.violations}
    return {}


TARGETS, WEIGHTS = 'data[0].loss_fn_inputs["target_tokens"]', 'data[0].loss_fn_inputs["weights"]'
nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    "good",
    [
        datum(),
        datum(1),
        datum(CONTEXT),
        datum(weights=None),
        datum(target_tokens=np.arange(3, dtype=np.int32)),
        datum(target_tokens=np.zeros((3, 4), np.int64), weights=np.full((3, 4), -0.5, np.float32)),
        datum(weights=np.full(3, 3e38, np.float32)),
        datum(weights=Tensor(dense=b"\x80\x3f" * 3, dtype=DType.DTYPE_BFLOAT16)),
        datum(
            target_tokens=np.zeros((3, 2), np.int64),
            weights=Tensor(
                sparse_csr=SparseCsr(
                    values=np.ones(1, np.float32).tobytes(),
                    crow_indices=np.array([0, 1, 1, 1]).tobytes(),
                    col_indices=np.array([1]).tobytes(),
                ),
                dtype=DType.DTYPE_FLOAT32,
                shape=[3, 2],
            ),
        ),
        Datum(model_input=[text(1), text(), text(2, 3)], loss_fn_inputs=datum().loss_fn_inputs),
    ],
    ids=range(10),
)
def test_what_is_right_passes(good: Datum) -> None:
    assert violations(request(good)) == {}


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        (datum(target_tokens=None), TARGETS, "is missing"),
        (datum(target_tokens=np.arange(2)), TARGETS, "shape [2]; the model input has 3"),
        (datum(target_tokens=np.array([0, 1, VOCAB])), TARGETS, f"element 2 is {VOCAB}"),
        (datum(target_tokens=np.array([0, -100, 1])), TARGETS, "element 1 is -100"),
        (datum(target_tokens=np.zeros(3, np.float32)), TARGETS, "dtype float32; must be int64"),
        (datum(target_tokens=np.zeros((3, 0), np.int64)), TARGETS, "(N,) or (N, K)"),
        (datum(target_tokens=np.zeros((3, 1, 1), np.int64)), TARGETS, "(N,) or (N, K)"),
        (datum(target_tokens=Tensor(dense=b"\0" * 24)), TARGETS, "dtype not given"),
        (
            datum(target_tokens=Tensor(dense=b"\0" * 25, dtype=DType.DTYPE_INT64)),
            TARGETS,
            "25 bytes",
        ),
        (
            datum(target_tokens=Tensor(dense=b"\0" * 24, dtype=DType.DTYPE_INT64, shape=[4])),
            TARGETS,
            "shape [4], but 3 elements",
        ),
        (
            datum(target_tokens=Tensor(dense=b"\0" * 24, dtype=DType.DTYPE_INT64, shape=[-3])),
            TARGETS,
            "shape [-3]",
        ),
        (datum(weights=np.ones(2, np.float32)), WEIGHTS, "shape [2]; must be [3]"),
        (datum(weights=np.ones((3, 1), np.float32)), WEIGHTS, "must be [3]"),
        (datum(weights=np.ones(3, np.int64)), WEIGHTS, "dtype int64; must be float32"),
        (datum(weights=np.array([1, nan, 1], np.float32)), WEIGHTS, "element 1 is nan"),
        (datum(weights=np.array([inf, 0, -inf], np.float32)), WEIGHTS, "element 0 is inf"),
        (
            datum(weights=Tensor(dense=b"\x80\x7f" * 3, dtype=DType.DTYPE_BFLOAT16)),
            WEIGHTS,
            "element 0 is inf",
        ),
        (
            datum(
                weights=Tensor(
                    sparse_csr=SparseCsr(crow_indices=b"12345678"),
                    dtype=DType.DTYPE_FLOAT32,
                    shape=[3, 1],
                )
            ),
            WEIGHTS,
            "crow_indices",
        ),
        (
            datum(
                weights=Tensor(
                    sparse_csr=SparseCsr(), dtype=DType.DTYPE_FLOAT32, shape=[1 << 40, 1]
                )
            ),
            WEIGHTS,
            "rows can fit",
        ),
        (
            datum(advantages=np.ones(3, np.float32)),
            'data[0].loss_fn_inputs["advantages"]',
            "is not an input of this loss; there are: target_tokens, weights",
        ),
        (Datum(loss_fn_inputs=datum().loss_fn_inputs), "data[0].model_input", "no tokens"),
        (
            Datum(model_input=[Chunk()], loss_fn_inputs=datum().loss_fn_inputs),
            "data[0].model_input[0]",
            "is empty",
        ),
        (datum(CONTEXT + 1), "data[0].model_input", f"has {CONTEXT + 1} tokens"),
        (
            Datum(model_input=[text(0), text(VOCAB, 1)], loss_fn_inputs=datum().loss_fn_inputs),
            "data[0].model_input[1].encoded_text.tokens",
            f"element 0 is {VOCAB}",
        ),
        (
            Datum(
                model_input=[Chunk(encoded_text=EncodedTextChunk(tokens=b"123"))],
                loss_fn_inputs=datum().loss_fn_inputs,
            ),
            "data[0].model_input[0].encoded_text.tokens",
            "3 bytes",
        ),
        (
            Datum(
                model_input=datum().model_input,
                loss_fn_inputs=datum().loss_fn_inputs,
                model_input_spans=[{"sampled_tokens": {"length": 0}}],
            ),
            "data[0].model_input_spans[0].sampled_tokens.length",
            "is 0",
        ),
    ],
    ids=range(26),
)
def test_what_is_wrong_is_named(bad: Datum, field: str, words: str) -> None:
    found = violations(request(bad))
    assert list(found) == [field]
    assert words in found[field]


def test_loss_names_and_settings() -> None:
    unknown = violations(request(datum(), loss="custom"))
    assert unknown == {"loss_fn": "is \"custom\"; backend 'books' has: cross_entropy, dpo, ppo"}
    assert list(violations(request(loss="cross_entropy"))) == ["data"]
    floats = np.ones(3, np.float32)
    good = datum(weights=None, logprobs=floats, advantages=floats)
    config = {"clip_low_threshold": {"number": 0.8}}
    assert violations(request(good, loss="ppo", loss_fn_config=config)) == {}
    found = violations(
        request(
            good,
            loss="ppo",
            loss_fn_config={"clip_low_threshold": {"number": nan}, "beta": {"number": 1}},
        )
    )
    assert found == {
        'loss_fn_config["clip_low_threshold"]': "is nan; must be finite",
        'loss_fn_config["beta"]': ("is not a setting of this loss; there are: clip_low_threshold"),
    }


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("beta", {"number": -0.5}, "is -0.5; must be a number of at least 0"),
        ("beta", {"number": inf}, "is inf; must be finite"),
        ("beta", {"text": "0.1"}, 'is the text "0.1"; must be a number of at least 0'),
        ("beta", {}, "has no value; must be a number or a text"),
        ("label_smoothing", {"number": 0.75}, "is 0.75; must be a number in 0..0.5"),
    ],
)
def test_a_setting_has_its_range(key: str, value: dict[str, Any], told: str) -> None:
    asked = request(datum(), datum(), loss="dpo", loss_fn_config={key: value})
    assert violations(asked) == {f'loss_fn_config["{key}"]': told}


def test_settings_within_their_range_pass() -> None:
    config = {
        "beta": {"number": 0},
        "label_smoothing": {"number": 0.5},
        "form": {"text": "of which nothing is known"},
    }
    assert violations(request(datum(), datum(), loss="dpo", loss_fn_config=config)) == {}


def test_gradients_per_token() -> None:
    asked = request(datum(), normalization=Normalization.NORMALIZATION_PER_TOKEN)
    assert not violations(asked, token_normalization=True)
    with pytest.raises(GatewayError, match="does not support gradients per token") as caught:
        violations(asked)
    assert caught.value.kind is Kind.UNSUPPORTED
    losses = [LossCapability(name="cross_entropy", required_inputs=["target_tokens"])]
    losses[0].optional_inputs.append("weights")
    losses[0].emulated = True
    computed = BackendCapabilities(name="books", losses=losses, token_normalization=True)
    with pytest.raises(GatewayError, match="which the gateway computes"):
        check_training_request(asked, Facts(Abilities(computed), VOCAB, CONTEXT), "adamw")


def test_a_loss_that_the_gateway_computes_is_refused_where_that_is_not_wanted() -> None:
    losses = [LossCapability(name="cross_entropy", required_inputs=["target_tokens"])]
    losses[0].optional_inputs.append("weights")
    for emulated in (False, True):
        losses[0].emulated = emulated
        facts = Facts(Abilities(BackendCapabilities(name="books", losses=losses)), VOCAB, CONTEXT)
        check_training_request(request(datum()), facts, "adamw")
        strict = request(datum(), native_loss_only=True)
        if not emulated:
            check_training_request(strict, facts, "adamw")
            continue
        with pytest.raises(GatewayError, match="the loss 'cross_entropy' itself") as caught:
            check_training_request(strict, facts, "adamw")
        assert caught.value.kind is Kind.UNSUPPORTED


def test_other_normalizations() -> None:
    for plain in (Normalization.NORMALIZATION_UNSPECIFIED, Normalization.NORMALIZATION_SUM):
        assert not violations(request(datum(), normalization=plain))
    unknown = request(datum(), normalization=3)  # type: ignore[arg-type]
    assert violations(unknown) == {"normalization": "is 3, which is no Normalization"}


def test_half_a_pair_is_refused() -> None:
    found = violations(request(*[datum()] * 3, loss="dpo"))
    assert list(found) == ["data"]
    assert "has 3 datums; the loss takes pairs" in found["data"]


def test_one_target_a_token() -> None:
    several = datum(target_tokens=np.zeros((3, 2), np.int64), weights=np.ones((3, 2), np.float32))
    found = violations(request(several, datum(), loss="dpo"))
    assert found == {TARGETS: "has shape [3, 2]; the loss takes one target a token, (N,)"}


def test_a_bad_datum_among_many_is_found() -> None:
    data = [datum(CONTEXT) for _ in range(300)]
    data[207].loss_fn_inputs["weights"].CopyFrom(
        tensor_from_array(np.array([0, 0, 0, nan, 0, inf, 0, 0], np.float32))
    )
    data[299].loss_fn_inputs["target_tokens"].CopyFrom(
        tensor_from_array(np.array([0, 0, 0, 0, 0, 0, VOCAB + 1, 0]))
    )
    assert violations(request(*data)) == {
        'data[207].loss_fn_inputs["weights"]': "element 3 is nan; must be finite",
        'data[299].loss_fn_inputs["target_tokens"]': (
            f"element 6 is {VOCAB + 1}; token ids must lie in 0..{VOCAB - 1}"
        ),
    }


def test_no_more_is_told_than_fits() -> None:
    assert len(violations(request(*[datum(weights=None, target_tokens=None)] * 100))) == (
        MAX_VIOLATIONS
    )


def test_images() -> None:
    image = Chunk(image=ImageChunk(data=b"x", format="png"))
    counted = Chunk(image=ImageChunk(data=b"x", format="jpeg", expected_tokens=2))
    with_image = Datum(model_input=[image, text(1)], loss_fn_inputs=datum().loss_fn_inputs)
    with pytest.raises(GatewayError, match="image chunks") as caught:
        check_training_request(request(with_image), facts(), "adamw")
    assert caught.value.kind is Kind.UNSUPPORTED
    assert violations(request(with_image), image_input=True) == {}
    with_counted = Datum(model_input=[counted, text(1)], loss_fn_inputs=datum(4).loss_fn_inputs)
    found = violations(request(with_counted), image_input=True)
    assert "the model input has 3 tokens" in found[TARGETS]
    odd = Datum(model_input=[Chunk(image=ImageChunk(format="gif"))], loss_fn_inputs={})
    assert set(violations(request(odd), image_input=True)) >= {
        "data[0].model_input[0].image.format",
        "data[0].model_input[0].image.data",
    }


@given(
    st.lists(
        st.tuples(st.integers(1, CONTEXT), st.sampled_from(["good", "token", "target", "weight"])),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=100, deadline=None)
def test_exactly_the_bad_ones_are_found(plan: list[tuple[int, str]]) -> None:
    makers: dict[str, Callable[[int], Datum]] = {
        "good": datum,
        "token": lambda n: Datum(
            model_input=[text(*range(n - 1), VOCAB)], loss_fn_inputs=datum(n).loss_fn_inputs
        ),
        "target": lambda n: datum(n, target_tokens=np.array([*range(n - 1), -1])),
        "weight": lambda n: datum(n, weights=np.array([*range(n - 1), inf], np.float32)),
    }
    paths = {
        "token": "data[{}].model_input[0].encoded_text.tokens",
        "target": 'data[{}].loss_fn_inputs["target_tokens"]',
        "weight": 'data[{}].loss_fn_inputs["weights"]',
    }
    found = violations(request(*[makers[kind](n) for n, kind in plan]))
    wanted = {paths[kind].format(i) for i, (_, kind) in enumerate(plan) if kind != "good"}
    assert set(found) == wanted
