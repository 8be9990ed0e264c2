"""Requests that are written are read back by the door as they were; and some are held to the bytes
that the official clients send (wire section 14)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct

from tinkergate.dialects.tinker import write_requests as write
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.dialects.tinker.read_requests import (
    load_state_request,
    optim_step_request,
    save_state_request,
    save_weights_for_sampler_request,
)
from tinkergate.dialects.tinker.read_sampling import sample_request
from tinkergate.dialects.tinker.wire_pb2 import TinkerForwardBackwardRequest
from tinkergate.errors import GatewayError
from tinkergate.tensors import tensor_from_array, token_bytes
from tinkergate.v1 import (
    AdamParams,
    Chunk,
    ConfigValue,
    Datum,
    EncodedTextChunk,
    ForwardBackwardRequest,
    ForwardRequest,
    ImageAssetPointerChunk,
    ImageChunk,
    LoraConfig,
    ModelInput,
    OptimizerParams,
    OptimStepRequest,
    SampleRequest,
    SamplingParams,
    StopStrings,
    StopTokens,
    VlaDatum,
    VlaObservation,
    VlaTrainStepRequest,
)


def text(tokens: list[int]) -> Chunk:
    return Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))


def sent(value: Any) -> Any:
    """What arrives."""
    return read_json(write_json(value))


def datum(length: int = 3) -> Datum:
    numbers = np.random.default_rng(length)
    inputs = {
        "target_tokens": tensor_from_array(numbers.integers(0, 99, length)),
        "weights": tensor_from_array(numbers.normal(size=length).astype(np.float32)),
    }
    return Datum(model_input=[text(list(range(length)))], loss_fn_inputs=inputs)


@pytest.mark.parametrize("kind", [ForwardRequest, ForwardBackwardRequest])
def test_a_protobuf_body_is_the_message(kind: Any) -> None:
    config = {"beta": ConfigValue(number=0.05), "loss_id": ConfigValue(text="x")}
    # Bodies of less and more than 127 bytes, whose lengths are one and more bytes long.
    data = [Datum(), datum(), datum(40_000)]
    request = kind(model_id="mine", data=data, loss_fn="dro", loss_fn_config=config)
    body = write.forward_backward_protobuf(request, "theirs", 7)
    read = TinkerForwardBackwardRequest.FromString(body)
    assert (read.model_id, read.seq_id, read.loss_fn) == ("theirs", 7, "dro")
    assert list(read.data) == data
    assert dict(read.loss_fn_config) == {"beta": 0.05}
    assert dict(read.loss_fn_config_v2) == config
    assert read.forward_only == (kind is ForwardRequest)


def test_a_pointer_to_an_image_is_refused_in_protobuf_by_its_place() -> None:
    pointer = Chunk(image_asset_pointer=ImageAssetPointerChunk(format="png", location="x"))
    request = ForwardBackwardRequest(data=[datum(), Datum(model_input=[text([1]), pointer])])
    with pytest.raises(GatewayError, match=r"data\[1\].model_input\[1\].image_asset_pointer"):
        write.forward_backward_protobuf(request, "m", 1)


def test_a_json_body_is_as_captured() -> None:
    data = Datum(
        model_input=[text([1, 2, 3])],
        loss_fn_inputs={"target_tokens": tensor_from_array(np.array([2, 3, 4]))},
    )
    request = ForwardBackwardRequest(data=[data], loss_fn="cross_entropy")
    inner = {
        "data": [
            {
                "loss_fn_inputs": {
                    "target_tokens": {"data": [2, 3, 4], "dtype": "int64", "shape": [3]}
                },
                "model_input": {"chunks": [{"tokens": [1, 2, 3], "type": "encoded_text"}]},
            }
        ],
        "loss_fn": "cross_entropy",
    }
    assert sent(write.forward_backward_json(request, "m", 1)) == {
        "forward_backward_input": inner,
        "model_id": "m",
        "seq_id": 1,
    }
    forward = ForwardRequest(data=[data], loss_fn="cross_entropy")
    assert sent(write.forward_backward_json(forward, "m", 1))["forward_input"] == inner


def test_every_default_of_adam_is_said() -> None:
    told = sent(write.optim_step_json(OptimStepRequest(), "m", 2))
    assert told["adam_params"] == {
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-12,
        "weight_decay": 0.0,
        "grad_clip_norm": 0.0,
    }
    request = OptimStepRequest(adam=AdamParams(learning_rate=0.0, weight_decay=0.1))
    read = optim_step_request(Fields(sent(write.optim_step_json(request, "m", 2))))
    assert read.adam.HasField("learning_rate")
    assert (read.adam.learning_rate, read.adam.weight_decay, read.seq_id) == (0.0, 0.1, 2)


def test_another_optimizer_goes_by_its_name() -> None:
    settings = {"learning_rate": ConfigValue(number=0.1), "mode": ConfigValue(text="a")}
    other = OptimizerParams(type="dimuon", settings=settings)
    told = sent(write.optim_step_json(OptimStepRequest(other=other), "m", 2))
    assert told["optimizer_params"] == {"type": "dimuon", "learning_rate": 0.1, "mode": "a"}
    assert "adam_params" not in told
    assert optim_step_request(Fields(told)).other == other


def test_an_adapter_is_told_whole() -> None:
    assert write.lora_json(LoraConfig()) == {
        "rank": 32,
        "train_unembed": True,
        "train_mlp": True,
        "train_attn": True,
    }
    config = LoraConfig(rank=4, seed=0, train_mlp=False)
    assert write.lora_json(config) == {
        "rank": 4,
        "seed": 0,
        "train_unembed": True,
        "train_mlp": False,
        "train_attn": True,
    }


def test_saves_and_loads_are_read_back() -> None:
    body = write.save_json("save_weights", "m", 3, "ck", {"overwrite": True})
    read = save_state_request(Fields(sent(body)))
    assert (read.model_id, read.seq_id, read.name, read.overwrite) == ("m", 3, "ck", True)
    body = write.save_json("save_weights_for_sampler", "m", 4, None, {"sampling_session_seq_id": 2})
    sampler = save_weights_for_sampler_request(Fields(sent(body)))
    assert (sampler.name, sampler.sampler_seq_id, sampler.seq_id) == ("", 2, 4)
    path = "tinker://s:train:0/weights/ck"
    load = load_state_request(Fields(sent(write.load_json("m", 5, path, optimizer=True))))
    assert (load.path, load.with_optimizer, load.seq_id) == (path, True, 5)


@pytest.mark.parametrize(
    "stop",
    [
        {},
        {"stop_strs": StopStrings(values=["x", "y"])},
        {"stop_tokens": StopTokens(values=[1, 2])},
        {"stop_tokens": StopTokens()},
    ],
)
def test_a_sample_call_is_read_back(stop: dict[str, Any]) -> None:
    request = SampleRequest(
        prompt=ModelInput(
            chunks=[text([5, 6]), Chunk(image=ImageChunk(data=b"\x00\xff", format="png"))]
        ),
        num_samples=3,
        sampling_params=SamplingParams(
            max_tokens=4, seed=2**63, temperature=0.7, top_k=5, top_p=0.3, **stop
        ),
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=3,
        target_prompt_logprobs=tensor_from_array(np.array([[1, -1]])),
        prompt_alt_tokens_k=2,
        prompt_logprobs_last_n=1,
    )
    read = sample_request(Fields(sent(write.sample_json(request, "sa", 9, all_fields=True))))
    assert (read.sampler_id, read.seq_id) == ("sa", 9)
    read.ClearField("source")
    read.ClearField("seq_id")
    assert read == request
    plain = write.sample_json(request, "sa", 9, all_fields=False)
    assert not {"topk_sample_logprobs", "target_prompt_logprobs"} & set(plain)


def test_the_options_of_a_vla_step_take_no_fields_place() -> None:
    options = Struct()
    options.update({"learning_rate": 0.5, "model_id": "another"})
    seen = VlaObservation(model_input=ModelInput(chunks=[text([1])]), state=[0.5])
    actions = tensor_from_array(np.arange(6, dtype=np.float32).reshape(3, 2))
    request = VlaTrainStepRequest(
        loss_fn="flow_matching",
        data=[VlaDatum(observation=seen, actions=actions)],
        options=options,
    )
    told = sent(write.vla_train_step_json(request, "m"))
    assert (told["model_id"], told["learning_rate"]) == ("m", 0.5)
    assert told["data"] == [
        {
            "observation": {
                "model_input": {"chunks": [{"tokens": [1], "type": "encoded_text"}]},
                "state": [0.5],
            },
            "supervision": {"actions": [[0, 1], [2, 3], [4, 5]]},
        }
    ]
