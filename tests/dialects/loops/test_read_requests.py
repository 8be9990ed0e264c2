from __future__ import annotations

from typing import Any

import pytest

from tinkergate.dialects.loops import write_requests as write
from tinkergate.dialects.loops.read_requests import (
    optim_step_request,
    sample_request,
    save_state_request,
    save_weights_request,
)
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import GatewayError
from tinkergate.tensors import token_bytes
from tinkergate.v1 import (
    AdamParams,
    Chunk,
    EncodedTextChunk,
    ModelInput,
    OptimStepRequest,
    SampleRequest,
    SamplingParams,
    StopStrings,
    StopTokens,
)


def sent(told: Any) -> Fields:
    return Fields(read_json(write_json(told)))


def test_an_optimizer_step_goes_there_and_back() -> None:
    params = AdamParams(
        learning_rate=4e-5, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.1, grad_clip_norm=0.5
    )
    request = OptimStepRequest(adam=params)
    assert optim_step_request(sent(write.optim_step_json(request))) == request


def test_what_a_step_does_not_say_is_as_the_sdk_has_it() -> None:
    adam = optim_step_request(sent({"adam_params": {"learning_rate": 1e-3}})).adam
    assert (adam.learning_rate, adam.beta2, adam.eps) == (1e-3, 0.95, 1e-12)
    assert adam.grad_clip_norm == 1.0


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=5, seed=3, temperature=0.5, top_k=7, top_p=0.25),
        SamplingParams(
            max_tokens=5, temperature=1.0, top_p=1.0, stop_strs=StopStrings(values=["a"])
        ),
        SamplingParams(
            max_tokens=5, temperature=1.0, top_p=1.0, stop_tokens=StopTokens(values=[13, 14])
        ),
    ],
)
def test_a_sample_call_goes_there_and_back(params: SamplingParams) -> None:
    text = Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes([5, 6])))
    request = SampleRequest(
        prompt=ModelInput(chunks=[text]),
        num_samples=3,
        sampling_params=params,
        prompt_logprobs=True,
        topk_prompt_logprobs=4,
    )
    assert sample_request(sent(write.sample_json(request, 5))) == request


@pytest.mark.parametrize("stop", [[], None])
def test_no_stops_leave_the_end_of_the_model_in_force(stop: Any) -> None:
    request = sample_request(sent({"prompt": [1], "stop": stop}))
    assert request.sampling_params.WhichOneof("stop") is None
    assert request.num_samples == 1
    assert not request.sampling_params.HasField("max_tokens")


def test_saves_replace_what_has_the_name() -> None:
    body = {"name": "a", "ttl_seconds": 60, "bump_version": True}
    for read in (save_state_request, save_weights_request):
        request = read(sent(body))
        assert (request.name, request.overwrite, request.ttl.seconds) == ("a", True, 60)
    assert not save_state_request(sent({"name": "a", "ttl_seconds": None})).HasField("ttl")
    with pytest.raises(GatewayError, match="name"):
        save_state_request(sent({"name": ""}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"n": 0}, "n"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"stop": "a", "stop_token_ids": [1]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"prompt_logprobs": -2}, "prompt_logprobs"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs"),
        ({"include_routed_experts": True}, "include_routed_experts"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(GatewayError) as caught:
        sample_request(sent({"prompt": [1], **change}))
    assert caught.value.violations[0].field == field
