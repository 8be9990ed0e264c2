"""Requests as Loops tells them (wire sections 4, 5 and 8): the bodies that a client sends.

Dictionaries are for `json_text.write_json`. Ids, names and paths are the service's own and come as
arguments: those in the message are the gateway's. Whatever Loops has no form for raises
GatewayError (INVALID) that names the field.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from tinkergate.dialects.loops.tensors_json import array_to_json, tensor_to_json
from tinkergate.dialects.tinker.json_text import write_json
from tinkergate.dialects.tinker.write_requests import ADAM_DEFAULTS
from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field
from tinkergate.tensors import tokens_from_bytes
from tinkergate.v1 import Chunk, Datum, OptimStepRequest, SampleRequest, SamplingParams

MAX_BODY = 24 << 20
"""The most bytes of compact JSON of one forward or forward_backward (wire section 11)."""
_ENVELOPE = 4096
"""More than what stands around the datums of a body."""
_FORMATS = ("png", "jpeg")

CROSS_ENTROPY = "cross_entropy"
SUMS = "skip_token_normalization"
"""The setting of cross_entropy that asks for plain sums, and the metric that says so is done."""

TARGETS = "target_tokens"
WEIGHTS = "weights"


class Part(NamedTuple):
    """Some neighbouring datums of one request, as many as one body may have."""

    datums: int
    data: orjson.Fragment
    """The list of them, written."""


def parts_of(data: Sequence[Datum], max_body: int = MAX_BODY) -> list[Part]:
    """The datums of a cross_entropy request, in bodies of at most `max_body` bytes. The datums of
    one body have targets of one rank and width, as Loops asks for. Raises GatewayError (INVALID)
    for a datum that Loops has no form for or that is too large for a body of its own: nothing is to
    be sent then."""
    limit = max_body - _ENVELOPE
    parts: list[Part] = []
    texts: list[bytes] = []
    size = 0
    width: tuple[int, ...] = ()
    for index, datum in enumerate(data):
        extents = tuple(datum.loss_fn_inputs[TARGETS].shape)[1:]
        text = write_json(datum_json(datum, f"data[{index}]"))
        if len(text) + 2 > limit:
            raise GatewayError(
                Kind.INVALID,
                ErrorReason.ERROR_REASON_TOO_LARGE,
                f"data[{index}]: takes {len(text)} bytes of JSON; Loops takes {limit} in one body",
            )
        if texts and (size + len(text) + 1 > limit or extents != width):
            parts.append(_part(texts))
            texts, size = [], 0
        texts.append(text)
        size += len(text) + 1
        width = extents
    if texts:
        parts.append(_part(texts))
    return parts


def _part(texts: list[bytes]) -> Part:
    return Part(len(texts), orjson.Fragment(b"[" + b",".join(texts) + b"]"))


def datum_json(datum: Datum, field: str) -> dict[str, Any]:
    """One datum of cross_entropy. Weights that are not given are told as ones, which is what they
    are. Spans of provenance are left out: Loops has no form for them, and no loss of it reads
    them."""
    inputs = {}
    for name, tensor in datum.loss_fn_inputs.items():
        try:
            inputs[name] = tensor_to_json(tensor)
        except ValueError as error:
            raise invalid_field(f'{field}.loss_fn_inputs["{name}"]', str(error)) from None
    if TARGETS in inputs and WEIGHTS not in inputs:
        inputs[WEIGHTS] = array_to_json(np.ones(inputs[TARGETS]["shape"], np.float32))
    return {
        "model_input": {"chunks": chunks_json(datum.model_input, f"{field}.model_input")},
        "loss_fn_inputs": inputs,
        "routed_experts_ref": None,
    }


def chunks_json(chunks: Iterable[Chunk], field: str) -> list[dict[str, Any]]:
    """The chunks of a model input at the path `field`: tokens, and images that say how many tokens
    they take."""
    return [chunk_json(chunk, f"{field}[{index}]") for index, chunk in enumerate(chunks)]


def chunk_json(chunk: Chunk, field: str) -> dict[str, Any]:
    """One chunk at the path `field`."""
    match chunk.WhichOneof("chunk"):
        case "encoded_text":
            return {"type": "encoded_text", "tokens": tokens_from_bytes(chunk.encoded_text.tokens)}
        case "image":
            image = chunk.image
            if image.HasField("override_dimensions"):
                raise invalid_field(f"{field}.image.override_dimensions", "has no form at Loops")
            if image.format not in _FORMATS:
                raise invalid_field(
                    f"{field}.image.format", f"is {image.format!r}; Loops takes 'png' and 'jpeg'"
                )
            if image.expected_tokens < 1:
                told = image.expected_tokens if image.HasField("expected_tokens") else "not given"
                raise invalid_field(
                    f"{field}.image.expected_tokens", f"is {told}; Loops needs it, from 1"
                )
            return {
                "type": "image",
                "data": base64.b64encode(image.data).decode(),
                "format": image.format,
                "expected_tokens": image.expected_tokens,
            }
    kind = chunk.WhichOneof("chunk") or "chunk"
    raise invalid_field(f"{field}.{kind}", "has no form at Loops; it takes tokens and images")


def forward_backward_json(part: Part, *, per_token: bool) -> dict[str, Any]:
    """The body of forward or forward_backward under cross_entropy. Plain sums are always asked
    for, unless gradients are to be taken `per_token`."""
    return {
        "data": part.data,
        "loss_fn": CROSS_ENTROPY,
        "loss_fn_config": None if per_token else {SUMS: True},
        "top_k_logprobs": 0,
    }


def optim_step_json(request: OptimStepRequest) -> dict[str, Any]:
    """The body of optim_step, with every default of the canon said: Loops' own clips."""
    given = {field.name: value for field, value in request.adam.ListFields()}
    return {"adam_params": dict(ADAM_DEFAULTS) | given}


def trainer_json(
    session_id: str,
    base_model: str,
    rank: int,
    *,
    availability: str,
    replicas: int,
    name: str,
    optional: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of trainers. `optional` has what is only sent if it is set: seed, max_seq_len, path,
    reuse_from_run_id."""
    return {
        "session_id": session_id,
        "base_model": base_model,
        "lora_rank": rank,
        "replicas": replicas,
        "availability_model": availability,
        "name": name,
        **{key: value for key, value in optional.items() if value not in (None, "")},
    }


def sample_json(request: SampleRequest, max_tokens: int) -> dict[str, Any]:
    """The body of sample, but for the fields that say what to sample from. `max_tokens` is what the
    request says, or else what it comes to: Loops does not say what it would take."""
    params = request.sampling_params
    told: dict[str, Any] = {
        "prompt": [],
        "n": request.num_samples or 1,
        "temperature": params.temperature if params.HasField("temperature") else 1.0,
        "top_p": params.top_p if params.HasField("top_p") else 1.0,
        "logprobs": 0,
        "return_tokens_as_token_ids": True,
        "max_tokens": max_tokens,
    }
    if params.HasField("seed"):
        told["seed"] = params.seed
    if params.top_k > 0:
        told["top_k"] = params.top_k
    told |= _stop_json(params)
    if request.prompt_logprobs or request.topk_prompt_logprobs:
        told["prompt_logprobs"] = request.topk_prompt_logprobs
    chunks = request.prompt.chunks
    if all(chunk.WhichOneof("chunk") == "encoded_text" for chunk in chunks):
        told["prompt"] = prompt_tokens(request)
    else:
        told["model_input_chunks"] = chunks_json(chunks, "prompt.chunks")
        told["return_token_ids"] = True
    return told


def prompt_tokens(request: SampleRequest) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The tokens of a prompt that has nothing else."""
    return tokens_from_bytes(b"".join(chunk.encoded_text.tokens for chunk in request.prompt.chunks))


def _stop_json(params: SamplingParams) -> dict[str, Any]:
    """What ends a sequence: words as `stop`, tokens as `stop_token_ids`. An empty list, which would
    switch off the model's own end, has no form: it is refused before."""
    stop = params.WhichOneof("stop")
    if stop is None:
        return {}
    values = list(getattr(params, stop).values)
    return {"stop" if stop == "stop_strs" else "stop_token_ids": values}
