"""Our messages and Tinker's public ones are the same bytes, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkergate import v1

Classes = Mapping[str, type[Message]]

RENAMED = {"LossConfigValue": "ConfigValue"}
"""Where our name differs: on the wire, names are nothing."""

OWN_FIELDS = {("Chunk", "image_asset_pointer")}
"""What we have and Tinker's protobuf has not."""

COMPATIBLE = (
    "Tensor",
    "BatchedTensor",
    "LossConfigValue",
    "Datum",
    "Chunk",
    "ForwardBackwardOutput",
    "SamplingParams",
    "SampleResponse",
)
"""The messages whose comments promise it; all others are parts of them."""


def own(name: str) -> type[Message]:
    """Our class for one of Tinker's messages."""
    found: type[Message] = getattr(v1, RENAMED.get(name, name))
    return found


def shape(field: FieldDescriptor) -> dict[str, object]:
    """All of a field that decides its bytes and its meaning."""
    oneof = field.containing_oneof
    nested = field.message_type
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "oneof": None if oneof is None else oneof.name,
        "message": None if nested is None else nested.name,
        "enum": None
        if field.enum_type is None
        else {value.number: value.name for value in field.enum_type.values},
        "value": shape(nested.fields_by_name["value"])
        if nested is not None and nested.GetOptions().map_entry
        else None,
    }


def reachable(descriptor: Descriptor, found: set[str]) -> set[str]:
    """The names of a message and of all messages in it, but for the entries of maps."""
    if not descriptor.GetOptions().map_entry:
        if descriptor.name in found:
            return found
        found.add(descriptor.name)
    for field in descriptor.fields:
        if field.message_type is not None:
            reachable(field.message_type, found)
    return found


def test_the_table_is_the_promise_and_its_parts(tinker_public: Classes) -> None:
    found: set[str] = set()
    for name in COMPATIBLE:
        reachable(tinker_public[name].DESCRIPTOR, found)
    assert found == tinker_public.keys()


def test_every_field_is_the_same(tinker_public: Classes) -> None:
    extra = set()
    for name, theirs in tinker_public.items():
        fields = own(name).DESCRIPTOR.fields_by_name
        for field in theirs.DESCRIPTOR.fields:
            assert shape(fields[field.name]) == shape(field), f"{name}.{field.name}"
        extra |= {(name, other) for other in set(fields) - set(theirs.DESCRIPTOR.fields_by_name)}
    assert extra == OWN_FIELDS


SCALARS = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=24),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_FLOAT: st.floats(allow_nan=False, width=32),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_STRING: st.text(max_size=8),
}


def fill(data: st.DataObject, message: Message) -> Message:
    """Set fields of a message by chance, one of each oneof, and the same within them."""
    taken: set[str] = set()
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if not data.draw(st.booleans()) or (oneof is not None and oneof.name in taken):
            continue
        if oneof is not None:
            taken.add(oneof.name)
        fill_field(data, message, field)
    return message


def fill_field(data: st.DataObject, message: Message, field: FieldDescriptor) -> None:
    target = getattr(message, field.name)
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        value = nested.fields_by_name["value"]
        for key in data.draw(st.lists(st.text(max_size=6), max_size=3)):
            if value.message_type is None:
                target[key] = draw_scalar(data, value)
            else:
                fill(data, target[key])
    elif nested is not None and field.is_repeated:
        for _ in range(data.draw(st.integers(0, 3))):
            fill(data, target.add())
    elif nested is not None:
        target.SetInParent()
        fill(data, target)
    elif field.is_repeated:
        target.extend(draw_scalar(data, field) for _ in range(data.draw(st.integers(0, 3))))
    else:
        setattr(message, field.name, draw_scalar(data, field))


def draw_scalar(data: st.DataObject, field: FieldDescriptor) -> object:
    if field.enum_type is not None:
        return data.draw(st.sampled_from([value.number for value in field.enum_type.values]))
    return data.draw(SCALARS[field.type])


def assert_same(source: Message, target: type[Message]) -> None:
    """The bytes of `source` read as `target` mean the same, nothing is unknown, and written again
    they are the same bytes."""
    written = source.SerializeToString(deterministic=True)
    read = target.FromString(written)
    assert json_format.MessageToDict(read) == json_format.MessageToDict(source)
    read.DiscardUnknownFields()
    assert read.SerializeToString(deterministic=True) == written


@pytest.mark.parametrize("name", COMPATIBLE)
@settings(max_examples=60)
@given(data=st.data())
def test_what_tinker_writes_we_read_and_write(
    tinker_public: Classes, name: str, data: st.DataObject
) -> None:
    assert_same(fill(data, tinker_public[name]()), own(name))


@pytest.mark.parametrize("name", COMPATIBLE)
@settings(max_examples=60)
@given(data=st.data())
def test_what_we_write_tinker_reads_and_writes(
    tinker_public: Classes, name: str, data: st.DataObject
) -> None:
    message = fill(data, own(name)())
    for part in chunks_of(message):  # the one field that Tinker's protobuf has not
        part.ClearField("image_asset_pointer")
    assert_same(message, tinker_public[name])


def chunks_of(message: Message) -> list[v1.Chunk]:
    if isinstance(message, v1.Chunk):
        return [message]
    return list(message.model_input) if isinstance(message, v1.Datum) else []


def test_the_bytes_themselves(tinker_public: Classes) -> None:
    """By hand, by the encoding's own rules: tag = number << 3 | wire type."""
    tensor = b"\x0a\x04\x00\x00\x80\x3f" + b"\x18\x01" + b"\x22\x01\x01"
    assert v1.Tensor(dense=b"\x00\x00\x80\x3f", dtype=v1.DType.DTYPE_FLOAT32, shape=[1]) == (
        v1.Tensor.FromString(tensor)
    )
    sequence = b"\x08\x01" + b"\x12\x04\x07\x00\x00\x00" + b"\x1a\x00"
    response = b"\x0a" + bytes([len(sequence)]) + sequence + b"\x12\x00" + b"\x20\x05"
    read = v1.SampleResponse.FromString(response)
    assert read.sequences[0].stop_reason == v1.StopReason.STOP_REASON_LENGTH
    assert read.sequences[0].tokens == (7).to_bytes(4, "little")
    assert read.sequences[0].HasField("logprobs")
    assert read.HasField("prompt_logprobs")
    assert read.prompt_cache_hit_tokens == 5
    assert read.SerializeToString() == response
    assert tinker_public["SampleResponse"].FromString(response).SerializeToString() == response
