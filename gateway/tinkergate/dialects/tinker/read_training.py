"""Bodies of POST forward and forward_backward as messages of the contract (wire sections 5.3 and
10.2): JSON, or protobuf of which the datums are the contract's own to the byte."""

from __future__ import annotations

from typing import TypeAlias

from google.protobuf.message import DecodeError

from tinkergate.dialects.tinker.inputs_json import datums_from_json
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.read_requests import read_settings
from tinkergate.dialects.tinker.wire_pb2 import TinkerForwardBackwardRequest
from tinkergate.errors import invalid_field
from tinkergate.v1 import ForwardBackwardRequest, ForwardRequest

PassRequest: TypeAlias = ForwardRequest | ForwardBackwardRequest


def pass_from_json(fields: Fields, *, forward_only: bool) -> PassRequest:
    """The request of `{"forward_input" | "forward_backward_input": {"data", "loss_fn",
    "loss_fn_config"}, "model_id", "seq_id"}`. Raises GatewayError (INVALID)."""
    name = "forward_input" if forward_only else "forward_backward_input"
    forward_only = forward_only or fields.flag("forward_only")
    if forward_only and name not in fields and "forward_input" in fields:
        name = "forward_input"
    given = fields.fields(name)
    request = _empty(forward_only)
    request.model_id = fields.text("model_id")
    if (seq_id := fields.optional_integer("seq_id")) is not None:
        request.seq_id = seq_id
    request.loss_fn = given.text("loss_fn")
    config = given.optional_fields("loss_fn_config")
    if config is not None:
        read_settings(config, request.loss_fn_config)
    request.data.extend(datums_from_json(given.items("data"), given.path("data")))
    return request


def pass_from_protobuf(body: bytes) -> PassRequest:
    """The request of a TinkerForwardBackwardRequest. Raises GatewayError (INVALID)."""
    told = read_protobuf(body)
    request = _empty(told.forward_only)
    request.model_id = told.model_id
    request.seq_id = told.seq_id
    request.loss_fn = told.loss_fn
    # The newer map has all of the older, and texts besides.
    if told.loss_fn_config_v2:
        for name, value in told.loss_fn_config_v2.items():
            request.loss_fn_config[name].CopyFrom(value)
    else:
        for name, number in told.loss_fn_config.items():
            request.loss_fn_config[name].number = number
    request.data.MergeFrom(told.data)
    return request


def read_protobuf(body: bytes) -> TinkerForwardBackwardRequest:
    """The message of a body. Raises GatewayError (INVALID) for bytes that are none."""
    try:
        return TinkerForwardBackwardRequest.FromString(body)
    except DecodeError:
        raise invalid_field(
            "body", f"has {len(body)} bytes that do not decode as a ForwardBackwardRequest"
        ) from None


def _empty(forward_only: bool) -> PassRequest:
    return ForwardRequest() if forward_only else ForwardBackwardRequest()
