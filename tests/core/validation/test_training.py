from __future__ import annotations

from typing import Any

import pytest

from tinkergate.core.validation.facts import Abilities, Facts
from tinkergate.core.validation.training import check_training_request
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    BackendCapabilities,
    LoadStateRequest,
    OptimStepRequest,
    SamplerWeightsKind,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)

FACTS = Facts(Abilities(BackendCapabilities(name="books", optimizers=["adamw", "dimuon"])), 50, 8)


def fields(request: Any, optimizer: str = "adamw") -> list[str]:
    try:
        check_training_request(request, FACTS, optimizer)
    except GatewayError as error:
        if error.kind is not Kind.INVALID:
            raise
        return [violation.field for violation in error.violations]
    return []


@pytest.mark.parametrize(
    ("adam", "field"),
    [
        ({"learning_rate": -1e-4}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta1": float("nan")}, "beta1"),
        ({"beta2": -0.1}, "beta2"),
        ({"eps": -1e-9}, "eps"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"grad_clip_norm": -1}, "grad_clip_norm"),
    ],
)
def test_adam_ranges(adam: dict[str, float], field: str) -> None:
    assert fields(OptimStepRequest(adam=adam)) == [f"adam.{field}"]


def test_good_optim_steps() -> None:
    assert fields(OptimStepRequest()) == []
    assert fields(OptimStepRequest(adam={"beta1": 0.0, "grad_clip_norm": 0.0})) == []
    other = {"type": "dimuon", "settings": {"learning_rate": {"number": 0.1}}}
    assert fields(OptimStepRequest(other=other), "dimuon") == []


def test_the_optimizer_must_be_the_models() -> None:
    assert fields(OptimStepRequest(), "dimuon") == ["other"]
    assert fields(OptimStepRequest(other={"type": "dimuon"})) == ["other.type"]
    assert fields(OptimStepRequest(other={})) == ["other.type"]
    with pytest.raises(GatewayError) as caught:
        check_training_request(OptimStepRequest(other={"type": "lion"}), FACTS, "adamw")
    assert caught.value.kind is Kind.UNSUPPORTED


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (SaveStateRequest(seq_id=0), "seq_id"),
        (SaveStateRequest(seq_id=-5), "seq_id"),
        (SaveStateRequest(request_id="x" * 129), "request_id"),
        (LoadStateRequest(path="/etc/passwd"), "path"),
        (LoadStateRequest(path="tinker://a/weights/b/c"), "path"),
        (SaveWeightsForSamplerRequest(name="a", sampler_seq_id=1), "sampler_seq_id"),
        (SaveWeightsForSamplerRequest(sampler_seq_id=-1), "sampler_seq_id"),
        (SaveWeightsForSamplerRequest(ttl={"seconds": 5}), "ttl"),
        (SaveWeightsForSamplerRequest(user_metadata={"a": "b"}), "user_metadata"),
        (SaveWeightsForSamplerRequest(overwrite=True), "overwrite"),
        (SaveWeightsForSamplerRequest(kind=99), "kind"),
    ],
)
def test_bad_requests_name_the_field(request_: Any, field: str) -> None:
    assert fields(request_) == [field]


def test_samplers_that_follow_training_are_refused_where_there_are_none() -> None:
    kind = SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_INFLIGHT
    with pytest.raises(GatewayError, match="follow training") as caught:
        check_training_request(SaveWeightsForSamplerRequest(kind=kind), FACTS, "adamw")
    assert caught.value.kind is Kind.UNSUPPORTED
