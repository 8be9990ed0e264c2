"""Model inputs and datums as Tinker's JSON tells them (wire section 9), and back.

Readers take the field's path for what they may have to say and raise GatewayError (INVALID);
writers give dictionaries for `json_text.write_json`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

import numpy as np

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.tensors_json import (
    array_from_list,
    tensor_from_json,
    tensor_to_json,
)
from tinkergate.errors import invalid_field
from tinkergate.tensors import tokens_from_bytes
from tinkergate.v1 import Chunk, Datum, ModelInput, Tensor

_TOKENS = np.dtype("<i8")
_INT32 = np.iinfo(np.int32)

LIST_DTYPES = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}
"""The loss inputs that may be plain lists of numbers, and what they are lists of."""


def model_input_from_json(value: object, field: str) -> ModelInput:
    """A ModelInput of `{"chunks": [...]}`."""
    return ModelInput(chunks=_chunks(value, field))


def _chunks(value: object, field: str) -> list[Chunk]:
    fields = Fields(value, field)
    return [
        chunk_from_json(chunk, f"{fields.path('chunks')}[{index}]")
        for index, chunk in enumerate(fields.items("chunks"))
    ]


def chunk_from_json(value: object, field: str) -> Chunk:
    """A Chunk, told apart by its `type`; tokens may go without one."""
    fields = Fields(value, field)
    kind = fields.optional_text("type") or ("encoded_text" if "tokens" in fields else "")
    chunk = Chunk()
    match kind:
        case "encoded_text":
            chunk.encoded_text.tokens = tokens_from_list(
                fields.raw("tokens"), fields.path("tokens")
            )
        case "image":
            chunk.image.data = _base64(fields, "data")
            chunk.image.format = fields.text("format")
            if (expected := fields.optional_integer("expected_tokens")) is not None:
                chunk.image.expected_tokens = expected
        case "image_asset_pointer":
            chunk.image_asset_pointer.format = fields.text("format")
            chunk.image_asset_pointer.location = fields.text("location")
            if (expected := fields.optional_integer("expected_tokens")) is not None:
                chunk.image_asset_pointer.expected_tokens = expected
        case "dmel":
            chunk.dmel.dmel = _base64(fields, "dmel")
        case _:
            raise invalid_field(
                fields.path("type"),
                f"is {kind!r}; must be 'encoded_text', 'image', 'image_asset_pointer' or 'dmel'",
            )
    return chunk


def tokens_from_list(values: object, field: str) -> bytes:
    """Packed int32 token ids of a list of integers."""
    tokens = array_from_list(values, _TOKENS, field)
    wrong = (tokens < _INT32.min) | (tokens > _INT32.max)  # type: ignore[operator]
    if bool(wrong.any()):
        place = int(wrong.argmax())
        raise invalid_field(f"{field}[{place}]", f"is {tokens[place]}; must fit int32")
    return tokens.astype("<i4").tobytes()


def _base64(fields: Fields, name: str) -> bytes:
    try:
        return base64.b64decode(fields.text(name), validate=True)
    except (binascii.Error, ValueError):
        raise fields.wrong(name, "must be base64") from None


def datum_from_json(value: object, field: str) -> Datum:
    """A Datum of `{"model_input": ..., "loss_fn_inputs": {name: TensorData}}`. The loss inputs of
    `LIST_DTYPES` may be plain lists."""
    fields = Fields(value, field)
    datum = Datum(model_input=_chunks(fields.raw("model_input"), fields.path("model_input")))
    inputs = fields.optional_fields("loss_fn_inputs")
    if inputs is not None:
        for name in inputs.value:
            datum.loss_fn_inputs[name].CopyFrom(_loss_input(inputs, name))
    return datum


def _loss_input(inputs: Fields, name: str) -> Tensor:
    value = inputs.raw(name)
    if isinstance(value, list) and name in LIST_DTYPES:
        value = {"data": value, "dtype": LIST_DTYPES[name]}
    return tensor_from_json(value, inputs.path(name))


def datums_from_json(values: Iterable[object], field: str) -> list[Datum]:
    """The Datums of a list at the path `field`."""
    return [datum_from_json(value, f"{field}[{index}]") for index, value in enumerate(values)]


def model_input_to_json(model_input: ModelInput) -> dict[str, Any]:
    """`{"chunks": [...]}` of a ModelInput."""
    return chunks_to_json(model_input.chunks)


def chunks_to_json(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """`{"chunks": [...]}` of the chunks of a model input."""
    return {"chunks": [chunk_to_json(chunk) for chunk in chunks]}


def chunk_to_json(chunk: Chunk) -> dict[str, Any]:
    """One chunk. Raises GatewayError (INVALID) for what JSON has no form for: a chunk of no kind,
    and an image with dimensions of the caller's own."""
    told: dict[str, Any]
    match chunk.WhichOneof("chunk"):
        case "encoded_text":
            tokens = tokens_from_bytes(chunk.encoded_text.tokens)
            return {"tokens": tokens, "type": "encoded_text"}
        case "image":
            image = chunk.image
            if image.HasField("override_dimensions"):
                raise invalid_field("image.override_dimensions", "cannot be told in JSON")
            told = {"data": _base64_text(image.data), "format": image.format, "type": "image"}
            if image.HasField("expected_tokens"):
                told["expected_tokens"] = image.expected_tokens
            return told
        case "image_asset_pointer":
            pointer = chunk.image_asset_pointer
            told = {
                "format": pointer.format,
                "location": pointer.location,
                "type": "image_asset_pointer",
            }
            if pointer.HasField("expected_tokens"):
                told["expected_tokens"] = pointer.expected_tokens
            return told
        case "dmel":
            return {"dmel": _base64_text(chunk.dmel.dmel), "type": "dmel"}
    raise invalid_field("chunk", "holds nothing")


def _base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def datum_to_json(datum: Datum) -> dict[str, Any]:
    """One datum. Its provenance spans are left out: JSON has no form for them, and only the
    stable_reinforce loss, which JSON has no form for either, reads them."""
    return {
        "loss_fn_inputs": {
            name: tensor_to_json(tensor) for name, tensor in datum.loss_fn_inputs.items()
        },
        "model_input": chunks_to_json(datum.model_input),
    }
