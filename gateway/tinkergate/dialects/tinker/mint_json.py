"""Bodies of MinT's own routes (wire sections 13.2, 13.3 and 13.6) as messages of the contract.
Readers raise GatewayError (INVALID), which names the field, its value and the rule.

What the routes' futures answer is with the other results, in `write_results`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from tinkergate.dialects.tinker.inputs_json import model_input_from_json
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.tensors_json import array_from_list, tensor_from_json
from tinkergate.errors import invalid_field
from tinkergate.tensors import tensor_from_array
from tinkergate.v1 import (
    ActBatchRequest,
    ActRequest,
    CheckpointType,
    CreateActionSessionRequest,
    ForwardBackwardReverseKlRequest,
    InterpolateCheckpointsRequest,
    ReverseKlDatum,
    Tensor,
    VlaDatum,
    VlaObservation,
    VlaTrainStepRequest,
)

MINT_SCHEME = "mint://"
CANONICAL_SCHEME = "tinker://"

_TYPES: Mapping[str, CheckpointType.ValueType] = {
    "sampler": CheckpointType.CHECKPOINT_TYPE_SAMPLER,
    "training": CheckpointType.CHECKPOINT_TYPE_TRAINING,
}
_STEP_FIELDS = frozenset({"model_id", "loss_fn", "data", "seq_id", "type"})
_FLOAT32 = np.dtype("<f4")


def canonical_path(path: str) -> str:
    """A checkpoint's canonical path; MinT's own form of it differs in the scheme."""
    if path.startswith(MINT_SCHEME):
        return CANONICAL_SCHEME + path.removeprefix(MINT_SCHEME)
    return path


def reverse_kl_request(fields: Fields) -> ForwardBackwardReverseKlRequest:
    """POST mint/forward_backward_reverse_kl."""
    request = ForwardBackwardReverseKlRequest(
        model_id=fields.text("model_id"),
        reference_model_path=canonical_path(fields.text("reference_model_path")),
    )
    if (seq_id := fields.optional_integer("seq_id")) is not None:
        request.seq_id = seq_id
    if (temperature := fields.optional_number("temperature")) is not None:
        request.temperature = temperature
    request.data.extend(
        _reverse_kl_datum(Fields(value, f"{fields.path('data')}[{index}]"))
        for index, value in enumerate(fields.items("data"))
    )
    return request


def _reverse_kl_datum(fields: Fields) -> ReverseKlDatum:
    return ReverseKlDatum(
        student_input=model_input_from_json(
            fields.raw("student_input"), fields.path("student_input")
        ),
        reference_input=model_input_from_json(
            fields.raw("reference_input"), fields.path("reference_input")
        ),
        target_tokens=_numbers(fields, "target_tokens", "int64"),
        weights=_numbers(fields, "weights", "float32"),
    )


def _numbers(fields: Fields, name: str, dtype: str) -> Tensor:
    value = fields.raw(name)
    if isinstance(value, list):
        value = {"data": value}
    return tensor_from_json(value, fields.path(name), default_dtype=dtype)


def interpolate_request(fields: Fields) -> InterpolateCheckpointsRequest:
    """POST mint/checkpoints/interpolate. `output_path` is a name, as `path` is when weights are
    saved."""
    kind = fields.optional_text("output_checkpoint_type") or "sampler"
    if kind not in _TYPES:
        raise fields.wrong("output_checkpoint_type", "must be 'sampler' or 'training'")
    coefficients = fields.items("coefficients")
    for index, value in enumerate(coefficients):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid_field(
                f"{fields.path('coefficients')}[{index}]", f"is {value!r:.80}; must be a number"
            )
    return InterpolateCheckpointsRequest(
        source_paths=[canonical_path(path) for path in fields.texts("source_paths")],
        coefficients=coefficients,
        output_name=fields.optional_text("output_path") or "",
        output_type=_TYPES[kind],
    )


def vla_train_step_request(fields: Fields) -> VlaTrainStepRequest:
    """POST mint/vla/train_step. Fields that are not known go into `options`."""
    request = VlaTrainStepRequest(
        model_id=fields.text("model_id"),
        loss_fn=fields.text("loss_fn"),
        options=_struct(
            {name: value for name, value in fields.value.items() if name not in _STEP_FIELDS},
            fields.path("options"),
        ),
    )
    if (seq_id := fields.optional_integer("seq_id")) is not None:
        request.seq_id = seq_id
    for index, value in enumerate(fields.items("data")):
        datum = Fields(value, f"{fields.path('data')}[{index}]")
        supervision = datum.fields("supervision")
        request.data.append(
            VlaDatum(
                observation=_observation(datum.fields("observation")),
                actions=_rows(supervision, "actions"),
            )
        )
    return request


def _rows(fields: Fields, name: str) -> Tensor:
    """A list of rows of numbers, all of one length."""
    rows = [
        array_from_list(row, _FLOAT32, f"{fields.path(name)}[{index}]")
        for index, row in enumerate(fields.items(name))
    ]
    if len({len(row) for row in rows}) > 1:
        raise fields.wrong(name, "must have rows of one length")
    return tensor_from_array(np.stack(rows) if rows else np.zeros((0, 0), np.float32))


def _observation(fields: Fields) -> VlaObservation:
    return VlaObservation(
        model_input=model_input_from_json(fields.raw("model_input"), fields.path("model_input")),
        state=array_from_list(fields.items("state"), _FLOAT32, fields.path("state")),
    )


def _struct(value: Mapping[str, Any], field: str) -> Struct:
    try:
        return ParseDict(dict(value), Struct())
    except ParseError as error:
        raise invalid_field(field, str(error)[:200]) from None


def create_action_session_request(fields: Fields) -> CreateActionSessionRequest:
    """POST mint/action_sessions."""
    return CreateActionSessionRequest(
        session_id=fields.text("session_id"),
        base_model=fields.optional_text("base_model") or "",
        model_path=canonical_path(fields.optional_text("model_path") or ""),
        owner_id=fields.optional_text("owner_id") or "",
    )


def act_request(action_session_id: str, fields: Fields) -> ActRequest:
    """POST mint/action_sessions/{id}/act."""
    return ActRequest(
        action_session_id=action_session_id,
        observation=_observation(fields.fields("observation")),
    )


def act_batch_request(action_session_id: str, fields: Fields) -> ActBatchRequest:
    """POST mint/action_sessions/{id}/act_batch."""
    path = fields.path("observations")
    return ActBatchRequest(
        action_session_id=action_session_id,
        observations=[
            _observation(Fields(value, f"{path}[{index}]"))
            for index, value in enumerate(fields.items("observations"))
        ],
    )


def act_to_json(result: Struct) -> dict[str, Any]:
    """The answer of an action session, as the provider gave it."""
    told: dict[str, Any] = MessageToDict(result)
    return told
