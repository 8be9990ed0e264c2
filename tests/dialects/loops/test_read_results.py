from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinkergate.dialects.loops import read_results as read
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import GatewayError

RUN = {"id": "r", "base_model": "m", "base_url": "http://h/t/", "deployment_id": None}
SAMPLER = {"id": "s", "base_model": "m", "base_url": "http://h/s//", "model_id": None}


def test_nulls_tell_the_kind_of_a_run_and_slashes_are_nothing() -> None:
    assert read.run_from_json(Fields(RUN)) == read.Run("r", "m", "http://h/t", "", "", "")
    dedicated = read.run_from_json(Fields({**RUN, "deployment_id": "d", "name": "n"}))
    assert (dedicated.deployment_id, dedicated.name) == ("d", "n")


def test_nulls_tell_the_kind_of_a_sampler() -> None:
    assert read.sampler_from_json(Fields(SAMPLER)) == read.SamplerFacts(
        "s", "m", "http://h/s", "", ""
    )
    dedicated = {**SAMPLER, "model_id": "m1", "deployment_id": "d1"}
    assert read.sampler_from_json(Fields(dedicated)).deployment_id == "d1"
    with pytest.raises(GatewayError, match="deployment_id: is not given"):
        read.sampler_from_json(Fields({**SAMPLER, "model_id": "m1"}))


@pytest.mark.parametrize("name", ["id", "base_model", "base_url"])
def test_a_run_without_what_it_needs_is_none(name: str) -> None:
    with pytest.raises(GatewayError, match=f"{name}: is not given"):
        read.run_from_json(Fields({**RUN, name: None}))


def test_models_are_told_with_what_is_known_of_them() -> None:
    listed = read.models_from_json(
        Fields(
            {
                "supported_models": [
                    {"model_name": "a", "max_context_length": 100},
                    {"model_name": "b", "max_enabled_seq_len": 50, "enabled": False},
                    {"max_context_length": 1},
                ]
            }
        )
    )

    assert [(m.name, m.max_context_length, m.trainable, m.sampleable) for m in listed] == [
        ("a", 100, True, True),
        ("b", 50, False, False),
    ]


def test_checkpoints_are_told_with_their_rank_if_it_is_known() -> None:
    row = {"id": "i", "checkpoint_id": "n", "target": "trainer", "base_model": "m"}
    first, second = read.checkpoints_from_json(
        Fields(
            {
                "checkpoints": [
                    {**row, "lora_adapter_config": {"r": 8}, "size_bytes": 2**40},
                    {**row, "lora_adapter_config": None},
                ]
            }
        )
    )

    assert (first.checkpoint_id, first.name, first.rank, first.size_bytes) == ("i", "n", 8, 2**40)
    assert (second.rank, second.size_bytes) == (0, 0)


def _output(*rows: Any) -> Fields:
    return Fields({"loss_fn_outputs": [{"logprobs": row} for row in rows]})


def test_logprobs_have_the_shape_of_the_targets_and_zero_for_what_was_not_scored() -> None:
    told = {"data": [None, -0.5, -1.5, -2.5], "dtype": "float32", "shape": [2, 2]}

    [array] = read.logprobs_from_json(_output(told), [(2, 2)])

    assert array.dtype == np.float32
    assert array.tolist() == [[0.0, -0.5], [-1.5, -2.5]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "loss_fn_outputs: has 0 datums; 1 were sent"),
        (
            [{"data": [-1.0], "dtype": "float32", "shape": [1]}],
            "loss_fn_outputs[0].logprobs: has the shape [1]; the targets [2]",
        ),
        ([None], "loss_fn_outputs[0].logprobs: is not given"),
    ],
)
def test_logprobs_that_do_not_fit_are_told(rows: list[Any], words: str) -> None:
    with pytest.raises(GatewayError) as caught:
        read.logprobs_from_json(_output(*rows), [(2,)])

    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("metrics", "acknowledged"),
    [({"x": 1.0}, True), ({"x": 1}, True), ({"x": 0.5}, False), ({"x": True}, False), ({}, False)],
)
def test_only_one_is_an_acknowledgement(metrics: Any, acknowledged: bool) -> None:
    assert read.flag_metric(Fields({"metrics": metrics}), "x") is acknowledged
    assert not read.flag_metric(Fields({"metrics": None}), "x")


def test_a_list_ends() -> None:
    assert read.page_after(None, 5) is None
    assert read.page_after(6, 5) == 6
    with pytest.raises(GatewayError, match="must be more than 5"):
        read.page_after(5, 5)
