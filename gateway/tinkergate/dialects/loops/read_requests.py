"""Bodies of requests in Loops' JSON as messages of the contract (wire sections 5.3 and 8.2).

Each function takes the JSON object of one route and gives the message of the call that answers it,
but for the model, which is in the route. Fields that the route does not have are ignored. Raises
GatewayError (INVALID), which names the field, its value and the rule.
"""

from __future__ import annotations

from typing import TypeAlias

from tinkergate.dialects.loops.read_training import PassRequest, chunk_list
from tinkergate.dialects.tinker.inputs_json import tokens_from_list
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.read_requests import read_ttl
from tinkergate.errors import invalid_field
from tinkergate.v1 import (
    LoadStateRequest,
    OptimStepRequest,
    SampleRequest,
    SamplingParams,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)

_ADAM = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0}
GRAD_CLIP_NORM = 1.0
"""Clipping is on unless it is said otherwise; 0 switches it off."""

Ordered: TypeAlias = (
    PassRequest
    | OptimStepRequest
    | SaveStateRequest
    | LoadStateRequest
    | SaveWeightsForSamplerRequest
)
"""Requests that have a place in a run's order."""


def optim_step_request(fields: Fields) -> OptimStepRequest:
    """POST optim_step."""
    request = OptimStepRequest()
    given = fields.optional_fields("adam_params") or Fields({}, fields.path("adam_params"))
    for name, default in (*_ADAM.items(), ("grad_clip_norm", GRAD_CLIP_NORM)):
        value = given.optional_number(name)
        setattr(request.adam, name, default if value is None else value)
    return request


def save_state_request(fields: Fields) -> SaveStateRequest:
    """POST save_state. A name that is taken is saved anew, as with `save_weights_request`."""
    request = SaveStateRequest(name=_name(fields), overwrite=True)
    read_ttl(request.ttl, fields)
    return request


def save_weights_request(fields: Fields) -> SaveWeightsForSamplerRequest:
    """POST save_weights_for_sampler. Programs save each step under one name, and are answered by
    the newest (wire section 8.5)."""
    request = SaveWeightsForSamplerRequest(name=_name(fields), overwrite=True)
    read_ttl(request.ttl, fields)
    return request


def _name(fields: Fields) -> str:
    if not (name := fields.text("name")):
        raise fields.wrong("name", "must not be empty")
    return name


def sample_request(fields: Fields) -> SampleRequest:
    """POST sample, but for what to sample from. `max_tokens` that is absent means up to the end of
    the model's context."""
    for name in ("structured_outputs", "include_routed_experts", "stream"):
        if fields.value.get(name) not in (None, False):
            raise fields.wrong(name, "must be absent: that is not offered here")
    request = SampleRequest(num_samples=1)
    if "model_input_chunks" in fields:
        read = chunk_list(fields.items("model_input_chunks"), fields.path("model_input_chunks"))
        request.prompt.chunks.extend(read)
    else:
        tokens = tokens_from_list(fields.raw("prompt"), fields.path("prompt"))
        if not tokens:
            raise fields.wrong("prompt", "must have a token")
        request.prompt.chunks.add().encoded_text.tokens = tokens
    if (samples := fields.optional_integer("n")) is not None:
        request.num_samples = samples
    if request.num_samples < 1:
        raise fields.wrong("n", "must be at least 1")
    if (k := fields.optional_integer("prompt_logprobs")) is not None:
        if k < 0:
            raise fields.wrong("prompt_logprobs", "must not be negative")
        request.prompt_logprobs = True
        request.topk_prompt_logprobs = k
    _read_params(request.sampling_params, fields)
    return request


def _read_params(params: SamplingParams, fields: Fields) -> None:
    if (most := fields.optional_integer("max_tokens")) is not None:
        params.max_tokens = most
    if (seed := fields.optional_integer("seed", bits=64)) is not None:
        params.seed = seed & ((1 << 64) - 1)
    if (temperature := fields.optional_number("temperature")) is not None:
        params.temperature = temperature
    if (top_k := fields.optional_integer("top_k")) is not None:
        params.top_k = top_k
    if (top_p := fields.optional_number("top_p")) is not None:
        params.top_p = top_p
    texts = [fields.text("stop")] if isinstance(fields.value.get("stop"), str) else None
    texts = fields.texts("stop") if texts is None else texts
    tokens = fields.items("stop_token_ids")
    if texts and tokens:
        raise invalid_field(fields.path("stop_token_ids"), "is given together with stop; give one")
    # An empty list leaves the model's own end in force (wire section 13.3), as nothing does.
    if texts:
        params.stop_strs.values.extend(texts)
    elif tokens:
        for index, token in enumerate(tokens):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 1 << 31:
                raise invalid_field(
                    f"{fields.path('stop_token_ids')}[{index}]", f"is {token!r}; must be a token id"
                )
        params.stop_tokens.values.extend(tokens)
