"""Bodies of POST asample as messages of the contract (wire section 6.3)."""

from __future__ import annotations

from typing import Any

from tinkergate.dialects.tinker.inputs_json import model_input_from_json
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.tensors_json import tensor_from_json
from tinkergate.errors import GatewayError
from tinkergate.v1 import SampleRequest, SamplingParams, StopStrings, StopTokens

_COUNTS = ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k")


def sample_request(fields: Fields) -> SampleRequest:
    """The request of an asample body. Raises GatewayError (INVALID)."""
    request = SampleRequest(prompt=model_input_from_json(fields.raw("prompt"), "prompt"))
    _read_source(request, fields)
    seq_id = fields.optional_integer("seq_id", bits=64)
    # It counts the calls to a sampler, and means nothing without one.
    if seq_id is not None and request.WhichOneof("source") == "sampler_id":
        request.seq_id = seq_id
    samples = fields.optional_integer("num_samples")
    request.num_samples = 1 if samples is None else samples
    if request.num_samples < 1:
        raise fields.wrong("num_samples", "must be at least 1")
    params = fields.optional_fields("sampling_params")
    if params is not None:
        request.sampling_params.CopyFrom(sampling_params(params))
    request.prompt_logprobs = fields.flag("prompt_logprobs")
    request.record_stability_info = fields.flag("record_stability_info")
    for name in _COUNTS:
        setattr(request, name, fields.optional_integer(name) or 0)
    if (last := fields.optional_integer("prompt_logprobs_last_n")) is not None:
        request.prompt_logprobs_last_n = last
    if "target_prompt_logprobs" in fields:
        request.target_prompt_logprobs.CopyFrom(
            tensor_from_json(
                fields.raw("target_prompt_logprobs"), fields.path("target_prompt_logprobs")
            )
        )
    return request


def _read_source(request: SampleRequest, fields: Fields) -> None:
    """The sampler goes before the checkpoint, and that before the base model: clients that name
    several tell what the first is of."""
    if (sampler := fields.optional_text("sampling_session_id")) is not None:
        request.sampler_id = sampler
    elif (path := fields.optional_text("model_path")) is not None:
        request.model_path = path
    elif (base_model := fields.optional_text("base_model")) is not None:
        request.base_model = base_model


def sampling_params(fields: Fields) -> SamplingParams:
    """SamplingParams; what is not given stays open. Raises GatewayError (INVALID)."""
    params = SamplingParams()
    if (most := fields.optional_integer("max_tokens")) is not None:
        params.max_tokens = most
    if (seed := fields.optional_integer("seed", bits=64, signed=False)) is not None:
        params.seed = seed
    if (temperature := fields.optional_number("temperature")) is not None:
        params.temperature = temperature
    if (top_k := fields.optional_integer("top_k")) is not None:
        params.top_k = top_k
    if (top_p := fields.optional_number("top_p")) is not None:
        params.top_p = top_p
    if "stop" in fields:
        _read_stop(params, fields)
    return params


def _read_stop(params: SamplingParams, fields: Fields) -> None:
    """A text, texts or token ids. An empty list switches the model's own end off too."""
    stop: Any = fields.raw("stop")
    if isinstance(stop, str):
        params.stop_strs.values.append(stop)
    elif not isinstance(stop, list):
        raise _wrong_stop(fields)
    elif all(isinstance(each, str) for each in stop) and stop:
        params.stop_strs.CopyFrom(StopStrings(values=stop))
    elif all(isinstance(each, int) and not isinstance(each, bool) for each in stop):
        if any(not -(1 << 31) <= each < 1 << 31 for each in stop):
            raise fields.wrong("stop", "holds a token id that does not fit int32")
        params.stop_tokens.CopyFrom(StopTokens(values=stop))
        params.stop_tokens.SetInParent()
    else:
        raise _wrong_stop(fields)


def _wrong_stop(fields: Fields) -> GatewayError:
    return fields.wrong("stop", "must be a text, a list of texts, or a list of token ids")
