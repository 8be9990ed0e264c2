"""Bodies of requests in Tinker's JSON as messages of the contract (wire sections 4 to 6).

Each function takes the JSON object of one route and gives the message of the call that answers it.
Fields that the route does not have are ignored. Raises GatewayError (INVALID), which names the
field, its value and the rule.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import write_json
from tinkergate.dialects.tinker.rollout_correction_json import rollout_correction_from_json
from tinkergate.errors import invalid_field
from tinkergate.v1 import (
    AdamParams,
    ConfigValue,
    CreateModelRequest,
    CreateSamplerRequest,
    CreateSessionRequest,
    FinishReason,
    FinishSessionRequest,
    LoadStateRequest,
    LoraConfig,
    OptimizerConfig,
    OptimizerParams,
    OptimStepRequest,
    SamplerWeightsKind,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
)

_ADAM_FIELDS = ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")
_ADAM_NAMES = frozenset({"adam", "adamw"})
_FINISH_REASONS = {
    "success": FinishReason.FINISH_REASON_SUCCESS,
    "errored": FinishReason.FINISH_REASON_ERRORED,
    "interrupted": FinishReason.FINISH_REASON_INTERRUPTED,
}
_KINDS = {
    "snapshot": SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_SNAPSHOT,
    "inflight": SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_INFLIGHT,
}

Ordered: TypeAlias = (
    OptimStepRequest
    | SaveStateRequest
    | LoadStateRequest
    | SaveWeightsForSamplerRequest
    | SaveWeightsExternalRequest
)
"""Requests in JSON that have a place in a model's order."""


def create_session_request(fields: Fields) -> CreateSessionRequest:
    """POST create_session."""
    return CreateSessionRequest(
        tags=fields.texts("tags"),
        user_metadata=read_notes(fields),
        display_name=fields.optional_text("display_name") or "",
        project_id=fields.optional_text("project_id") or "",
        client_version=f"tinker/{fields.optional_text('sdk_version') or 'unknown'}",
    )


def finish_session_request(session_id: str, fields: Fields) -> FinishSessionRequest:
    """POST sessions/{id}/finish. A reason that is not known is as good as none."""
    reason = fields.optional_fields("reason")
    kind = "" if reason is None else reason.optional_text("type") or ""
    return FinishSessionRequest(
        session_id=session_id,
        reason=_FINISH_REASONS.get(kind, FinishReason.FINISH_REASON_UNSPECIFIED),
        detail=fields.optional_text("detail") or "",
    )


def create_model_request(fields: Fields) -> CreateModelRequest:
    """POST create_model. `lora_config` must be there: without it the whole model would be trained,
    which is something else."""
    request = CreateModelRequest(
        session_id=fields.text("session_id"),
        base_model=fields.text("base_model"),
        user_metadata=read_notes(fields),
    )
    _read_model_place(request, fields)
    lora = fields.optional_fields("lora_config")
    if lora is None:
        raise invalid_field("lora_config", "is not given; only LoRA adapters are trained")
    request.lora_config.CopyFrom(_lora_config(lora))
    correction = fields.optional_fields("rollout_correction_config")
    if correction is not None:
        request.rollout_correction.CopyFrom(rollout_correction_from_json(correction))
    return request


def create_from_checkpoint_request(fields: Fields) -> CreateModelRequest:
    """POST load_weights without a model_id: a new model that begins with a checkpoint. Its base
    model and adapter are the checkpoint's."""
    request = CreateModelRequest(
        session_id=fields.text("session_id"), user_metadata=read_notes(fields)
    )
    _read_model_place(request, fields)
    request.checkpoint.path = fields.text("path")
    request.checkpoint.with_optimizer = fields.flag("optimizer")
    return request


def _read_model_place(request: CreateModelRequest, fields: Fields) -> None:
    number = fields.optional_integer("model_seq_id")
    if number is not None:
        request.model_seq_id = number
    optimizer = fields.optional_fields("optimizer_config")
    if optimizer is not None:
        request.optimizer_config.CopyFrom(_optimizer_config(optimizer))


def _lora_config(fields: Fields) -> LoraConfig:
    config = LoraConfig()
    if (rank := fields.optional_integer("rank")) is not None:
        config.rank = rank
    if (seed := fields.optional_integer("seed", bits=64)) is not None:
        config.seed = seed
    if (alpha := fields.optional_number("alpha")) is not None:
        config.alpha = alpha
    for name in ("train_mlp", "train_attn", "train_unembed"):
        if name in fields:
            setattr(config, name, fields.flag(name))
    return config


def _optimizer_config(fields: Fields) -> OptimizerConfig:
    config = OptimizerConfig(type=fields.text("type"))
    read_settings(fields, config.settings, leave_out="type")
    return config


def read_settings(
    fields: Fields, settings: MutableMapping[str, ConfigValue], *, leave_out: str = ""
) -> None:
    """Copy an open set of numbers and texts; true and false are 1 and 0."""
    for name, value in fields.value.items():
        if name == leave_out or value is None:
            continue
        if isinstance(value, str):
            settings[name].text = value
        elif isinstance(value, int | float):
            settings[name].number = value
        else:
            raise fields.wrong(name, "must be a number or a text")


def optim_step_request(fields: Fields) -> OptimStepRequest:
    """POST optim_step. `adam_params` or `optimizer_params`; without either, Adam with all
    defaults."""
    request = OptimStepRequest()
    read_place(request, fields)
    adam, other = fields.optional_fields("adam_params"), fields.optional_fields("optimizer_params")
    if adam is not None and other is not None:
        raise invalid_field("optimizer_params", "is given together with adam_params; give one")
    if other is not None:
        kind = other.text("type")
        if kind in _ADAM_NAMES:
            adam = other
        else:
            params = OptimizerParams(type=kind)
            read_settings(other, params.settings, leave_out="type")
            request.other.CopyFrom(params)
    if adam is not None:
        request.adam.CopyFrom(_adam_params(adam))
    return request


def _adam_params(fields: Fields) -> AdamParams:
    params = AdamParams()
    for name in _ADAM_FIELDS:
        if (value := fields.optional_number(name)) is not None:
            setattr(params, name, value)
    return params


def save_state_request(fields: Fields) -> SaveStateRequest:
    """POST save_weights."""
    request = SaveStateRequest(
        name=fields.optional_text("path") or "",
        overwrite=fields.flag("overwrite"),
        user_metadata=read_notes(fields),
    )
    read_place(request, fields)
    read_ttl(request.ttl, fields)
    return request


def load_state_request(fields: Fields) -> LoadStateRequest:
    """POST load_weights with a model_id. A weights_access_token is not needed, whoever may call
    this gateway may read its checkpoints."""
    request = LoadStateRequest(path=fields.text("path"), with_optimizer=fields.flag("optimizer"))
    read_place(request, fields)
    return request


def save_weights_for_sampler_request(fields: Fields) -> SaveWeightsForSamplerRequest:
    """POST save_weights_for_sampler, named or ephemeral."""
    kind = fields.optional_text("kind") or "snapshot"
    if kind not in _KINDS:
        raise fields.wrong("kind", "must be 'snapshot' or 'inflight'")
    request = SaveWeightsForSamplerRequest(
        name=fields.optional_text("path") or "",
        kind=_KINDS[kind],
        overwrite=fields.flag("overwrite"),
        user_metadata=read_notes(fields),
    )
    if (number := fields.optional_integer("sampling_session_seq_id")) is not None:
        request.sampler_seq_id = number
    read_place(request, fields)
    read_ttl(request.ttl, fields)
    return request


def save_weights_external_request(fields: Fields) -> SaveWeightsExternalRequest:
    """POST save_weights_external."""
    request = SaveWeightsExternalRequest(
        name=fields.text("path"),
        age_encryption_recipients=fields.texts("age_encryption_recipients"),
        overwrite=fields.flag("overwrite"),
        user_metadata=read_notes(fields),
    )
    read_place(request, fields)
    read_ttl(request.ttl, fields)
    return request


def create_sampler_request(fields: Fields) -> CreateSamplerRequest:
    """POST create_sampling_session."""
    request = CreateSamplerRequest(session_id=fields.text("session_id"))
    if (number := fields.optional_integer("sampling_session_seq_id")) is not None:
        request.sampler_seq_id = number
    base_model, path = fields.optional_text("base_model"), fields.optional_text("model_path")
    # Clients that name both mean the checkpoint, and tell what it is of.
    if path is not None:
        request.model_path = path
    elif base_model is not None:
        request.base_model = base_model
    return request


def read_place(request: Ordered, fields: Fields) -> None:
    """The model, and the place in its order where there is one."""
    request.model_id = fields.text("model_id")
    if (seq_id := fields.optional_integer("seq_id")) is not None:
        request.seq_id = seq_id


def read_ttl(ttl: Duration, fields: Fields) -> None:
    """`ttl_seconds`; none sets nothing."""
    seconds = fields.optional_number("ttl_seconds")
    if seconds is not None:
        if not 0 < seconds < 1e10:
            raise fields.wrong("ttl_seconds", "must be greater than 0 and less than 1e10")
        ttl.FromNanoseconds(round(seconds * 1e9))


def read_notes(fields: Fields, name: str = "user_metadata") -> dict[str, str]:
    """The caller's notes. Values that are no texts are kept as their JSON."""
    notes = fields.optional_fields(name)
    if notes is None:
        return {}
    return {
        key: value if isinstance(value, str) else write_json(value).decode()
        for key, value in notes.value.items()
    }
