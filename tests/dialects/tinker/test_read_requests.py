"""Bodies of requests: what the SDKs send, what they leave out, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.read_requests import (
    create_from_checkpoint_request,
    create_model_request,
    create_sampler_request,
    create_session_request,
    finish_session_request,
    optim_step_request,
    save_state_request,
    save_weights_for_sampler_request,
)
from tinkergate.dialects.tinker.read_sampling import sample_request
from tinkergate.dialects.tinker.read_training import pass_from_json, pass_from_protobuf
from tinkergate.dialects.tinker.rollout_correction_json import rollout_correction_from_json
from tinkergate.dialects.tinker.wire_pb2 import TinkerForwardBackwardRequest
from tinkergate.errors import GatewayError
from tinkergate.v1 import FinishReason, ForwardBackwardRequest, ForwardRequest, RolloutCorrection

MODEL = {
    "session_id": "s",
    "model_seq_id": 0,
    "base_model": "b",
    "lora_config": {"rank": 8, "seed": 7, "train_unembed": True, "train_attn": False},
}
LATER = {"of_a_later_version": {"a": [1]}, "type": "whatever"}


def test_what_is_absent_stays_absent_and_what_is_unknown_is_ignored() -> None:
    request = create_model_request(Fields({**MODEL, **LATER, "user_metadata": None}))

    assert request.model_seq_id == 0
    assert request.HasField("model_seq_id")
    lora = request.lora_config
    assert (lora.rank, lora.seed, lora.train_unembed, lora.train_attn) == (8, 7, True, False)
    assert not lora.HasField("train_mlp")
    assert not request.HasField("optimizer_config")
    assert not request.HasField("rollout_correction")


def test_notes_of_any_kind_become_texts() -> None:
    fields = Fields({"user_metadata": {"a": "b", "n": 1, "deep": {"x": [True, None]}}})

    assert dict(create_session_request(fields).user_metadata) == {
        "a": "b",
        "n": "1",
        "deep": '{"x":[true,null]}',
    }


def test_a_session_tells_its_client() -> None:
    fields = Fields({"tags": ["a"], "sdk_version": "0.38.0", "display_name": "mine"})

    request = create_session_request(fields)

    assert list(request.tags) == ["a"]
    assert (request.client_version, request.display_name) == ("tinker/0.38.0", "mine")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ({"type": "success"}, FinishReason.FINISH_REASON_SUCCESS),
        ({"type": "errored"}, FinishReason.FINISH_REASON_ERRORED),
        ({"type": "interrupted"}, FinishReason.FINISH_REASON_INTERRUPTED),
        ({"type": "of a later version"}, FinishReason.FINISH_REASON_UNSPECIFIED),
        (None, FinishReason.FINISH_REASON_UNSPECIFIED),
    ],
)
def test_why_a_session_ends(reason: Any, expected: FinishReason.ValueType) -> None:
    request = finish_session_request("s", Fields({"reason": reason}))

    assert (request.session_id, request.reason) == ("s", expected)


def test_a_model_from_a_checkpoint() -> None:
    body = {"session_id": "s", "model_seq_id": 2, "path": "tinker://p", "optimizer": True}

    request = create_from_checkpoint_request(Fields(body))

    assert (request.checkpoint.path, request.checkpoint.with_optimizer) == ("tinker://p", True)
    assert request.model_seq_id == 2


STEP = {"model_id": "m", "seq_id": 3}


def test_adam_by_either_name_another_optimizer_and_none() -> None:
    by_name = {"type": "adamw", "learning_rate": 0.5, "beta2": 0.9}
    for body in ({"adam_params": by_name}, {"optimizer_params": by_name}):
        adam = optim_step_request(Fields({**STEP, **body})).adam
        assert (adam.learning_rate, adam.beta2) == (0.5, 0.9)
        assert not adam.HasField("beta1")
    dimuon = {"type": "dimuon", "learning_rate": 0.1, "mode": "x", "on": True}
    other = optim_step_request(Fields({**STEP, "optimizer_params": dimuon})).other
    assert other.type == "dimuon"
    assert other.settings["learning_rate"].number == 0.1
    assert other.settings["mode"].text == "x"
    assert other.settings["on"].number == 1
    assert optim_step_request(Fields(STEP)).WhichOneof("optimizer") is None


def test_saving_with_and_without_an_end_a_place_and_a_name() -> None:
    kept = save_state_request(Fields({**STEP, "path": "a", "ttl_seconds": None}))
    passing = save_state_request(Fields({"model_id": "m", "seq_id": None, "ttl_seconds": 7200}))
    ephemeral = save_weights_for_sampler_request(Fields({**STEP, "sampling_session_seq_id": 0}))

    assert (kept.name, kept.seq_id, kept.HasField("ttl")) == ("a", 3, False)
    assert (passing.name, passing.HasField("seq_id"), passing.ttl.seconds) == ("", False, 7200)
    assert ephemeral.HasField("sampler_seq_id")


def test_the_newer_map_of_settings_goes_first() -> None:
    told = TinkerForwardBackwardRequest(
        model_id="m", seq_id=1, loss_fn="ppo", loss_fn_config={"clip_low_threshold": 0.9}
    )
    old = pass_from_protobuf(told.SerializeToString())
    told.loss_fn_config_v2["clip_low_threshold"].number = 0.5
    told.loss_fn_config_v2["mode"].text = "x"
    new = pass_from_protobuf(told.SerializeToString())

    assert isinstance(old, ForwardBackwardRequest)
    assert old.loss_fn_config["clip_low_threshold"].number == 0.9
    assert new.loss_fn_config["clip_low_threshold"].number == 0.5
    assert new.loss_fn_config["mode"].text == "x"


def test_forward_only_asks_for_no_gradient() -> None:
    body = {"model_id": "m", "forward_backward_input": {"data": [], "loss_fn": "ppo"}}

    gradient = pass_from_json(Fields(body), forward_only=False)
    none = pass_from_json(Fields({**body, "forward_only": True}), forward_only=False)

    assert isinstance(gradient, ForwardBackwardRequest)
    assert isinstance(none, ForwardRequest)
    assert not gradient.HasField("seq_id")


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"sampling_session_id": "x", "base_model": "b"}, "sampler_id"),
        ({"model_path": "tinker://p", "base_model": "b"}, "model_path"),
        ({"base_model": "b"}, "base_model"),
        ({}, None),
    ],
)
def test_the_nearest_source_of_a_sample_goes_first(given: dict[str, str], source: str) -> None:
    request = sample_request(Fields({"prompt": {"chunks": []}, "seq_id": 4, **given}))

    assert request.WhichOneof("source") == source
    assert request.HasField("seq_id") == (source == "sampler_id")
    assert request.num_samples == 1


@pytest.mark.parametrize(
    ("stop", "kind", "values"),
    [
        ("ab", "stop_strs", ["ab"]),
        (["ab", "c"], "stop_strs", ["ab", "c"]),
        ([1, 2], "stop_tokens", [1, 2]),
        ([], "stop_tokens", []),
        (None, None, None),
    ],
)
def test_stops(stop: Any, kind: str | None, values: Any) -> None:
    body = {"prompt": {"chunks": []}, "sampling_params": {"stop": stop}}

    params = sample_request(Fields(body)).sampling_params

    # An empty list is there, and switches the model's own end off.
    assert params.WhichOneof("stop") == kind
    if kind:
        assert list(getattr(params, kind).values) == values


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"threshold": 1.1}, RolloutCorrection(threshold=1.1)),
        (
            {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.5_2.0"},
            RolloutCorrection(threshold=2.0, lower_threshold=0.5),
        ),
        (
            {
                "rollout_rs_threshold": 2,
                "rollout_rs_threshold_lower": 0.25,
                "rollout_is": "sequence",
                "rollout_is_threshold": 3,
                "bypass_mode": None,
            },
            RolloutCorrection(threshold=2, lower_threshold=0.25, weight_cap=3),
        ),
        (
            {"threshold": 2, "lower_threshold": 0.5, "weight_cap": 1.5},
            RolloutCorrection(threshold=2, lower_threshold=0.5, weight_cap=1.5),
        ),
    ],
)
def test_rollout_corrections(config: dict[str, Any], expected: RolloutCorrection) -> None:
    assert rollout_correction_from_json(Fields(config)) == expected


WRONG: list[tuple[Callable[[Fields], Any], dict[str, Any], str]] = [
    (create_model_request, {**MODEL, "lora_config": None}, "lora_config: is not given"),
    (create_model_request, {**MODEL, "base_model": 5}, "base_model: is 5; must be a text"),
    (create_model_request, {**MODEL, "model_seq_id": 2**31}, "model_seq_id: is 2147483648; must"),
    (create_model_request, {**MODEL, "lora_config": {"rank": 1.5}}, "lora_config.rank: is 1.5"),
    (create_model_request, {**MODEL, "user_metadata": "x"}, "user_metadata: is 'x'; must be an"),
    (create_session_request, {"tags": [1]}, "tags[0]: is 1; must be a text"),
    (optim_step_request, {**STEP, "seq_id": True}, "seq_id: is true; must be an integer"),
    (optim_step_request, {"seq_id": 1}, "model_id: is not given"),
    (optim_step_request, {**STEP, "optimizer_params": {}}, "optimizer_params.type: is not given"),
    (
        optim_step_request,
        {**STEP, "optimizer_params": {"type": "x", "a": [1]}},
        "optimizer_params.a: is a list of 1; must be a number or a text",
    ),
    (save_state_request, {**STEP, "overwrite": 1}, "overwrite: is 1; must be true or false"),
    (save_state_request, {**STEP, "ttl_seconds": 0}, "ttl_seconds: is 0; must be greater than 0"),
    (create_sampler_request, {}, "session_id: is not given"),
    (rollout_correction_from_json, {"rollout_rs": "token"}, "rollout_rs: is 'token'; must be"),
    (rollout_correction_from_json, {"veto": 1}, "veto: is 1; must be absent"),
    (rollout_correction_from_json, {"threshold": "a_b"}, "threshold: is 'a_b'; must be a number"),
]


@pytest.mark.parametrize(("read", "body", "words"), WRONG)
def test_what_is_wrong_is_named(
    read: Callable[[Fields], Any], body: dict[str, Any], words: str
) -> None:
    with pytest.raises(GatewayError) as caught:
        read(Fields(body))

    assert words in caught.value.message
