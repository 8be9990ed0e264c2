"""Results as Tinker's dialect tells them (wire sections 5, 6 and 13), as messages of the contract.

Training and sampling results come as JSON or as protobuf, all others as JSON. Whatever is not as
documented raises GatewayError (INVALID) that names the field: who asked decides what to make of an
answer that makes no sense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from tinkergate.dialects.tinker.inputs_json import tokens_from_list
from tinkergate.dialects.tinker.json_fields import Fields, shown
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.tensors_json import array_from_list, tensor_from_json
from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field
from tinkergate.tensors import array_from_tensor, batched_from_arrays
from tinkergate.v1 import (
    ArrayRecord,
    ForwardBackwardOutput,
    LoraConfig,
    OptimStepResult,
    SampledSequence,
    SampleResponse,
    StopReason,
    SupportedModel,
    TopkLogprobs,
)

PROTOBUF = "application/x-protobuf"
"""The content type of results in protobuf."""

ARRAY_RECORD = "ArrayRecord"
NO_LOGPROB = -99999.0
"""With token 0, an entry of a table of likeliest tokens that is not there (wire section 10.3)."""

_FLOAT32 = np.dtype("<f4")
_STOP_REASONS = {
    "stop": StopReason.STOP_REASON_STOP,
    "length": StopReason.STOP_REASON_LENGTH,
}


def is_protobuf(content_type: str) -> bool:
    """Whether a result is in protobuf, by its content type."""
    return PROTOBUF in content_type


def output_from_protobuf(body: bytes, datums: int) -> ForwardBackwardOutput:
    """The result of a forward_backward of so many datums."""
    output = ForwardBackwardOutput()
    _parse(output, body)
    told = 0
    for index, record in enumerate(output.loss_fn_outputs):
        if not record.num_datums and record.fields:
            first = next(iter(record.fields.values()))
            record.num_datums = len(first.offsets) // 8 - 1
        for name, field in record.fields.items():
            if len(field.offsets) != 8 * (record.num_datums + 1):
                where = f"loss_fn_outputs[{index}].fields[{name!r}].offsets"
                raise invalid_field(where, f"does not fit {record.num_datums} datums")
        told += record.num_datums
    return _checked(output, told, datums)


def output_from_json(body: bytes, datums: int) -> ForwardBackwardOutput:
    """The result of a forward_backward of so many datums."""
    fields = Fields(read_json(body))
    output = ForwardBackwardOutput(
        loss_fn_output_type=fields.optional_text("loss_fn_output_type") or ARRAY_RECORD,
        metrics=metrics_from_json(fields),
    )
    rows = [
        {
            name: array_from_tensor(tensor_from_json(value, f"loss_fn_outputs[{index}].{name}"))
            for name, value in Fields(row, f"loss_fn_outputs[{index}]").value.items()
        }
        for index, row in enumerate(fields.items("loss_fn_outputs"))
    ]
    output.loss_fn_outputs.extend(array_records(rows))
    return _checked(output, len(rows), datums)


def reverse_kl_output_from_json(body: bytes, datums: int) -> ForwardBackwardOutput:
    """The result of MinT's forward_backward_reverse_kl of so many datums (wire section 13.3). Where
    the service does not tell `loss:sum`, it is the sum of the outputs."""
    fields = Fields(read_json(body))
    rows = []
    for index, row in enumerate(fields.items("outputs")):
        loss = Fields(row, f"outputs[{index}]").raw("loss")
        tensor = tensor_from_json(loss, f"outputs[{index}].loss", default_dtype="float32")
        rows.append({"loss": array_from_tensor(tensor).reshape(-1)})
    output = ForwardBackwardOutput(
        loss_fn_output_type=ARRAY_RECORD, metrics=metrics_from_json(fields)
    )
    output.loss_fn_outputs.extend(array_records(rows))
    if "loss:sum" not in output.metrics:
        output.metrics["loss:sum"] = float(
            sum(np.sum(row["loss"], dtype=np.float64) for row in rows)
        )
    return _checked(output, len(rows), datums)


def _checked(output: ForwardBackwardOutput, told: int, datums: int) -> ForwardBackwardOutput:
    """The result, without metrics that no reduction can be read off: clients fail on those (wire
    section 8.2)."""
    if told != datums:
        raise invalid_field("loss_fn_outputs", f"has {told} datums; {datums} were sent")
    for name in [name for name in output.metrics if name.count(":") != 1]:
        del output.metrics[name]
    return output


def array_records(rows: Sequence[Mapping[str, NDArray[np.generic]]]) -> list[ArrayRecord]:
    """The arrays of all datums: one record if they go together, else one for each datum."""
    if not rows:
        return []

    def shape(row: Mapping[str, NDArray[np.generic]]) -> object:
        return {name: (array.shape[1:], array.dtype) for name, array in row.items()}

    together = all(shape(row) == shape(rows[0]) for row in rows)
    groups = [rows] if together else [[row] for row in rows]
    return [
        ArrayRecord(
            fields={name: batched_from_arrays([row[name] for row in group]) for name in group[0]},
            num_datums=len(group),
        )
        for group in groups
    ]


def metrics_from_json(fields: Fields) -> dict[str, float]:
    """`metrics`; none if there are none."""
    metrics = fields.optional_fields("metrics")
    return {} if metrics is None else {name: metrics.number(name) for name in metrics.value}


def step_from_json(body: bytes) -> OptimStepResult:
    """The result of optim_step."""
    return OptimStepResult(metrics=metrics_from_json(Fields(read_json(body))))


def response_from_protobuf(body: bytes, samples: int) -> SampleResponse:
    """The result of asample of so many sequences."""
    response = SampleResponse()
    _parse(response, body)
    if response.HasField("prompt_logprobs") and not response.prompt_logprobs:
        response.ClearField("prompt_logprobs")
    for sequence in response.sequences:
        if sequence.HasField("logprobs") and not sequence.logprobs and sequence.tokens:
            sequence.ClearField("logprobs")
    return _with_samples(response, samples)


def response_from_json(body: bytes, samples: int, topk: int) -> SampleResponse:
    """The result of asample of so many sequences (wire section 6.3). `topk` is how many likeliest
    tokens of each prompt position were asked for."""
    fields = Fields(read_json(body))
    response = SampleResponse()
    for index, value in enumerate(fields.items("sequences")):
        response.sequences.append(_sequence(Fields(value, f"sequences[{index}]")))
    if "prompt_logprobs" in fields:
        logprobs = array_from_list(
            fields.raw("prompt_logprobs"), _FLOAT32, "prompt_logprobs", null_is_nan=True
        )
        response.prompt_logprobs = logprobs.tobytes()
    if topk and "topk_prompt_logprobs" in fields:
        response.topk_prompt_logprobs.CopyFrom(_likeliest(fields, "topk_prompt_logprobs", topk))
    return _with_samples(response, samples)


def _with_samples(response: SampleResponse, samples: int) -> SampleResponse:
    if len(response.sequences) != samples:
        raise invalid_field("sequences", f"has {len(response.sequences)}; {samples} were asked for")
    return response


def _sequence(fields: Fields) -> SampledSequence:
    reason = _STOP_REASONS.get(name := fields.text("stop_reason"))
    if reason is None:
        raise invalid_field(fields.path("stop_reason"), f"is {name!r}; must be stop or length")
    tokens = tokens_from_list(fields.raw("tokens"), fields.path("tokens"))
    sequence = SampledSequence(stop_reason=reason, tokens=tokens)
    if "logprobs" in fields:
        logprobs = array_from_list(
            fields.raw("logprobs"), _FLOAT32, fields.path("logprobs"), null_is_nan=True
        )
        if logprobs.size * 4 != len(tokens):
            raise invalid_field(fields.path("logprobs"), "must be as many as there are tokens")
        sequence.logprobs = logprobs.tobytes()
    return sequence


def _likeliest(fields: Fields, name: str, k: int) -> TopkLogprobs:
    """A table of `[[token, logprob], ...]` or null for each position."""
    rows = fields.items(name)
    tokens = np.zeros((len(rows), k), "<i4")
    logprobs = np.full((len(rows), k), NO_LOGPROB, _FLOAT32)
    for index, row in enumerate(rows):
        if not row:
            continue
        try:
            pairs: NDArray[Any] = np.array(row, np.float64)
        except (TypeError, ValueError):
            pairs = np.empty(0)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) > k:
            raise invalid_field(
                f"{fields.path(name)}[{index}]",
                f"is {shown(row)}; must be at most {k} pairs of a token and its logprob",
            )
        tokens[index, : len(pairs)] = pairs[:, 0]
        logprobs[index, : len(pairs)] = pairs[:, 1]
    return TopkLogprobs(
        token_ids=tokens.tobytes(), logprobs=logprobs.tobytes(), k=k, length=len(rows)
    )


def models_from_json(body: bytes) -> list[SupportedModel]:
    """The base models of get_server_capabilities (wire section 4.1), but for those without a
    name. What is not said of one is taken to be possible; the tokenizer goes by the name."""
    fields = Fields(read_json(body))
    models = []
    for index, value in enumerate(fields.items("supported_models")):
        model = Fields(value, f"supported_models[{index}]")
        if name := model.optional_text("model_name"):
            models.append(
                SupportedModel(
                    name=name,
                    max_context_length=model.optional_integer("max_context_length") or 0,
                    trainable=model.flag("trainable", True),
                    sampleable=model.flag("sampleable", True),
                    tokenizer_id=name,
                )
            )
    return models


def lora_from_weights_info(body: bytes) -> LoraConfig:
    """The adapter that weights_info tells of (wire section 5.9). Raises GatewayError
    (UNSUPPORTED) for weights that are no adapter."""
    fields = Fields(read_json(body))
    if not fields.flag("is_lora", True):
        raise GatewayError(
            Kind.UNSUPPORTED,
            ErrorReason.ERROR_REASON_UNSUPPORTED,
            "the checkpoint holds whole weights and no LoRA adapter",
        )
    config = LoraConfig()
    if (rank := fields.optional_integer("lora_rank")) is not None:
        config.rank = rank
    for part in ("train_unembed", "train_mlp", "train_attn"):
        if part in fields:
            setattr(config, part, fields.flag(part))
    return config


def _parse(message: Message, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise GatewayError(
            Kind.INVALID,
            ErrorReason.ERROR_REASON_INVALID_FIELD,
            f"the body is no {message.DESCRIPTOR.name}: {error}",
        ) from None
