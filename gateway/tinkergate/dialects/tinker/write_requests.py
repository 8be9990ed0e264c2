"""Requests as Tinker's dialect tells them (wire sections 4 to 6 and 13): the bodies that a client
sends.

Dictionaries are for `json_text.write_json`; what is not given is left out, and defaults are said,
as the official clients do. Ids and paths are the service's own and come as arguments: those in the
message are the gateway's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from tinkergate.dialects.tinker.inputs_json import (
    chunks_to_json,
    datum_to_json,
    model_input_to_json,
)
from tinkergate.dialects.tinker.json_text import number
from tinkergate.dialects.tinker.tensors_json import tensor_to_json
from tinkergate.dialects.tinker.wire_pb2 import TinkerForwardBackwardRequest
from tinkergate.errors import invalid_field
from tinkergate.tensors import array_from_tensor
from tinkergate.v1 import (
    ConfigValue,
    Datum,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    LoraConfig,
    OptimizerConfig,
    OptimStepRequest,
    RolloutCorrection,
    SampleRequest,
    SamplingParams,
    VlaObservation,
    VlaTrainStepRequest,
)

ADAM_DEFAULTS: Mapping[str, float] = {
    "learning_rate": 1e-4,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-12,
    "weight_decay": 0.0,
    "grad_clip_norm": 0.0,
}
"""AdamParams where the caller does not say (wire section 5.4)."""

_DATA_TAG = b"\x1a"
"""Field 3 of TinkerForwardBackwardRequest, `data`, with a length."""


def session_json(client_version: str, project_id: str = "") -> dict[str, Any]:
    """The body of create_session."""
    told: dict[str, Any] = {
        "tags": [],
        "user_metadata": {},
        "sdk_version": client_version,
        "type": "create_session",
    }
    return told | ({"project_id": project_id} if project_id else {})


def lora_json(config: LoraConfig) -> dict[str, Any]:
    """`lora_config` of create_model; every field but `alpha`, which the dialect does not have."""
    told: dict[str, Any] = {"rank": config.rank if config.HasField("rank") else 32}
    if config.HasField("seed"):
        told["seed"] = config.seed
    for part in ("train_unembed", "train_mlp", "train_attn"):
        told[part] = getattr(config, part) if config.HasField(part) else True
    return told


def optimizer_json(config: OptimizerConfig) -> dict[str, Any]:
    """`optimizer_config` of create_model and load_weights."""
    return {"type": config.type or "adamw"} | config_json(config.settings)


def config_json(config: Mapping[str, ConfigValue]) -> dict[str, Any]:
    """Settings by name."""
    return {
        name: value.text if value.HasField("text") else number(value.number)
        for name, value in config.items()
    }


def rollout_correction_json(correction: RolloutCorrection) -> dict[str, Any]:
    """MinT's `rollout_correction_config` of create_model (wire section 13.5), by the names that it
    has from verl: with both bounds just as MinT's public script has it. Of "seq_sum_k1" with one
    bound verl makes the other its inverse; the older name says which bound there is."""
    told: dict[str, Any] = {"bypass_mode": True, "loss_type": "reinforce"}
    high, low = correction.HasField("threshold"), correction.HasField("lower_threshold")
    if high and low:
        told["rollout_rs"] = "seq_sum_k1"
        told["rollout_rs_threshold"] = f"{correction.lower_threshold}_{correction.threshold}"
    elif high or low:
        told["rollout_rs"] = "sequence"
        if high:
            told["rollout_rs_threshold"] = correction.threshold
        else:
            told["rollout_rs_threshold_lower"] = correction.lower_threshold
    if correction.HasField("weight_cap"):
        told["rollout_is"] = "sequence"
        told["rollout_is_threshold"] = correction.weight_cap
    return told


def forward_backward_protobuf(
    request: ForwardRequest | ForwardBackwardRequest, model_id: str, seq_id: int
) -> bytes:
    """The protobuf body of forward_backward (wire section 10.2), `forward_only` for a
    ForwardRequest. Raises GatewayError (INVALID) for a pointer to an image, which the dialect
    speaks in JSON only."""
    head = TinkerForwardBackwardRequest(
        model_id=model_id,
        seq_id=seq_id,
        loss_fn=request.loss_fn,
        loss_fn_config={
            name: value.number
            for name, value in request.loss_fn_config.items()
            if not value.HasField("text")
        },
        forward_only=isinstance(request, ForwardRequest),
        loss_fn_config_v2=request.loss_fn_config,
    )
    parts = [head.SerializeToString()]
    # The datums go in as they are: a message would take a copy of them, for which protobuf writes
    # and reads each.
    for index, datum in enumerate(request.data):
        _check_no_pointer(datum, index)
        body = datum.SerializeToString()
        parts += (_DATA_TAG, _varint(len(body)), body)
    return b"".join(parts)


def _check_no_pointer(datum: Datum, index: int) -> None:
    for place, chunk in enumerate(datum.model_input):
        if chunk.WhichOneof("chunk") == "image_asset_pointer":
            raise invalid_field(
                f"data[{index}].model_input[{place}].image_asset_pointer",
                "cannot be sent to this backend in a training request; send the image itself",
            )


def _varint(value: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def forward_backward_json(
    request: ForwardRequest | ForwardBackwardRequest, model_id: str, seq_id: int
) -> dict[str, Any]:
    """The JSON body of forward_backward, or of forward for a ForwardRequest (wire section 5.3)."""
    inner: dict[str, Any] = {
        "data": [datum_to_json(datum) for datum in request.data],
        "loss_fn": request.loss_fn,
    }
    if request.loss_fn_config:
        inner["loss_fn_config"] = config_json(request.loss_fn_config)
    forward = isinstance(request, ForwardRequest)
    key = "forward_input" if forward else "forward_backward_input"
    return {key: inner, "model_id": model_id, "seq_id": seq_id}


def optim_step_json(request: OptimStepRequest, model_id: str, seq_id: int) -> dict[str, Any]:
    """The body of optim_step (wire section 5.4), with every default of Adam said."""
    told: dict[str, Any] = {"model_id": model_id, "seq_id": seq_id, "type": "optim_step"}
    if request.WhichOneof("optimizer") == "other":
        settings = config_json(request.other.settings)
        return told | {"optimizer_params": {"type": request.other.type} | settings}
    given = {field.name: number(value) for field, value in request.adam.ListFields()}
    return told | {"adam_params": dict(ADAM_DEFAULTS) | given}


def save_json(
    route: str, model_id: str, seq_id: int, name: str | None, more: Mapping[str, object]
) -> dict[str, Any]:
    """The body of save_weights, save_weights_for_sampler or save_weights_external, which is
    `route`, with the fields `more` that are its own (wire sections 5.5 to 5.7)."""
    told: dict[str, Any] = {"model_id": model_id, "seq_id": seq_id, "type": route}
    return told | ({} if name is None else {"path": name}) | dict(more)


def load_json(model_id: str, seq_id: int, path: str, *, optimizer: bool) -> dict[str, Any]:
    """The body of load_weights into a model (wire section 5.8a)."""
    return {
        "model_id": model_id,
        "seq_id": seq_id,
        "path": path,
        "optimizer": optimizer,
        "type": "load_weights",
    }


def sample_json(
    request: SampleRequest, sampler_id: str, seq_id: int, *, all_fields: bool
) -> dict[str, Any]:
    """The body of asample (wire section 6.3). With `all_fields`, those that came after SDK 0.22
    are among them where they are asked for."""
    told: dict[str, Any] = {
        "sampling_session_id": sampler_id,
        "seq_id": seq_id,
        "num_samples": request.num_samples or 1,
        "prompt": model_input_to_json(request.prompt),
        "sampling_params": sampling_params_json(request.sampling_params),
        "prompt_logprobs": request.prompt_logprobs,
        "topk_prompt_logprobs": request.topk_prompt_logprobs,
        "type": "sample",
    }
    if not all_fields:
        return told
    if request.topk_sample_logprobs:
        told["topk_sample_logprobs"] = request.topk_sample_logprobs
    if request.HasField("target_prompt_logprobs"):
        told["target_prompt_logprobs"] = tensor_to_json(request.target_prompt_logprobs)
    if request.prompt_alt_tokens_k:
        told["prompt_alt_tokens_k"] = request.prompt_alt_tokens_k
    if request.HasField("prompt_logprobs_last_n"):
        told["prompt_logprobs_last_n"] = request.prompt_logprobs_last_n
    if request.record_stability_info:
        told["record_stability_info"] = True
    return told


def sampling_params_json(params: SamplingParams) -> dict[str, Any]:
    """`sampling_params` of asample. A top_k of 0 is told as -1, which means the same."""
    told: dict[str, Any] = {
        "temperature": params.temperature if params.HasField("temperature") else 1.0,
        "top_k": params.top_k or -1,
        "top_p": params.top_p if params.HasField("top_p") else 1.0,
    }
    if params.HasField("max_tokens"):
        told["max_tokens"] = params.max_tokens
    if params.HasField("seed"):
        told["seed"] = params.seed
    if (stop := params.WhichOneof("stop")) is not None:
        told["stop"] = list(getattr(params, stop).values)
    return told


def reverse_kl_json(
    request: ForwardBackwardReverseKlRequest, model_id: str, reference_path: str
) -> dict[str, Any]:
    """The body of MinT's mint/forward_backward_reverse_kl (wire section 13.3). Its seq_id is null,
    as the official client has it: the service orders it by arrival."""
    return {
        "model_id": model_id,
        "reference_model_path": reference_path,
        "data": [
            {
                "student_input": model_input_to_json(datum.student_input),
                "reference_input": model_input_to_json(datum.reference_input),
                "target_tokens": tensor_to_json(datum.target_tokens),
                "weights": tensor_to_json(datum.weights),
            }
            for datum in request.data
        ],
        "temperature": request.temperature if request.HasField("temperature") else 1.0,
        "seq_id": None,
        "type": "mint_forward_backward_reverse_kl",
    }


def interpolate_json(
    paths: Iterable[str], coefficients: Iterable[float], checkpoint_type: str
) -> dict[str, Any]:
    """The body of MinT's mint/checkpoints/interpolate (wire section 13.2); the service names the
    checkpoint."""
    return {
        "source_paths": list(paths),
        "coefficients": [number(coefficient) for coefficient in coefficients],
        "output_path": None,
        "output_checkpoint_type": checkpoint_type,
        "type": "mint_interpolate_checkpoints",
    }


def observation_json(observation: VlaObservation) -> dict[str, Any]:
    """What a vision-language-action model sees (wire section 13.6)."""
    return {
        "model_input": chunks_to_json(observation.model_input.chunks),
        "state": list(observation.state),
    }


def vla_train_step_json(request: VlaTrainStepRequest, model_id: str) -> dict[str, Any]:
    """The body of MinT's mint/vla/train_step (wire section 13.6): the options first, so that they
    cannot take the place of a field."""
    told: dict[str, Any] = MessageToDict(request.options)
    return told | {
        "model_id": model_id,
        "loss_fn": request.loss_fn,
        "data": [
            {
                "observation": observation_json(datum.observation),
                "supervision": {"actions": array_from_tensor(datum.actions)},
            }
            for datum in request.data
        ],
    }
