"""Tinker's public messages, put together from a table of their fields in a pool of their own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

PACKAGE = "tinker_public"

# A message or enum by its name, then its fields, one a line: name, number, and type, with "in" and
# the name of a oneof where it is part of one. The types are those of SDK 0.38.
TABLE = """
enum StopReason
  STOP_REASON_STOP 0
  STOP_REASON_LENGTH 1
enum DType
  DTYPE_UNSPECIFIED 0
  DTYPE_FLOAT32 1
  DTYPE_INT64 2
  DTYPE_INT32 3
  DTYPE_BFLOAT16 4

message Tensor
  dense 1 bytes in encoding
  sparse_csr 2 SparseCsr in encoding
  dtype 3 DType
  shape 4 repeated int64
message SparseCsr
  values 1 bytes
  crow_indices 2 bytes
  col_indices 3 bytes
message BatchedTensor
  data 1 bytes
  offsets 2 bytes
  dtype 3 DType
  trailing_shape 4 repeated int64
message LossConfigValue
  number 1 double in value
  text 2 string in value

message Datum
  model_input 1 repeated Chunk
  loss_fn_inputs 2 map Tensor
  model_input_spans 3 repeated ProvenanceSpan
  loss_fn_input_spans 4 repeated ProvenanceSpan
message ProvenanceSpan
  prompt_tokens 1 PromptProvenanceSpan in span
  sampled_tokens 2 SampledProvenanceSpan in span
message PromptProvenanceSpan
  sequence_id 1 string
  offset 2 int64
  length 3 int64
message SampledProvenanceSpan
  sequence_id 1 string
  offset 2 int64
  length 3 int64
message Chunk
  encoded_text 1 EncodedTextChunk in chunk
  image 2 ImageChunk in chunk
  dmel 3 DmelChunk in chunk
message EncodedTextChunk
  tokens 1 bytes
message ImageChunk
  data 1 bytes
  format 2 string
  expected_tokens 3 optional int32
  override_dimensions 4 optional ImageDimensions
message ImageDimensions
  width 1 uint32
  height 2 uint32
message DmelChunk
  dmel 1 bytes

message ForwardBackwardOutput
  loss_fn_output_type 1 string
  loss_fn_outputs 2 repeated ArrayRecord
  metrics 3 map double
message ArrayRecord
  type_tag 1 string
  fields 2 map BatchedTensor
  num_datums 3 int64

message SampleResponse
  sequences 1 repeated SampledSequence
  prompt_logprobs 2 optional bytes
  topk_prompt_logprobs 3 optional TopkLogprobs
  prompt_cache_hit_tokens 4 int32
  target_prompt_logprobs 5 optional Tensor
  prompt_alt_tokens 6 optional PromptAltTokens
message PromptAltTokens
  tokens 1 Tensor
  logprobs 2 Tensor
message SampledSequence
  stop_reason 1 StopReason
  tokens 2 bytes
  logprobs 3 optional bytes
  topk_sampled_logprobs 4 optional TopkLogprobs
message TopkLogprobs
  token_ids 1 bytes
  logprobs 2 bytes
  k 3 uint32
  length 4 uint32
message SamplingParams
  max_tokens 1 optional int32
  seed 2 optional uint64
  temperature 3 optional float
  top_k 4 optional int32
  top_p 5 optional float
  stop_strs 6 StopStrings in stop
  stop_tokens 7 StopTokens in stop
message StopStrings
  values 1 repeated string
message StopTokens
  values 1 repeated int32
"""

Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "bool": Field.TYPE_BOOL,
    "bytes": Field.TYPE_BYTES,
    "double": Field.TYPE_DOUBLE,
    "float": Field.TYPE_FLOAT,
    "int32": Field.TYPE_INT32,
    "int64": Field.TYPE_INT64,
    "string": Field.TYPE_STRING,
    "uint32": Field.TYPE_UINT32,
    "uint64": Field.TYPE_UINT64,
}


def _set_type(field: descriptor_pb2.FieldDescriptorProto, name: str, enums: set[str]) -> None:
    """Say of what type a field is: a scalar, an enum or a message of the table."""
    if name in SCALARS:
        field.type = SCALARS[name]
    else:
        field.type = Field.TYPE_ENUM if name in enums else Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{name}"


def _add_map(message: descriptor_pb2.DescriptorProto, name: str, number: int, value: str) -> None:
    """Add map<string, value>, which on the wire is a repeated message of key and value."""
    entry = message.nested_type.add(
        name="".join(part.title() for part in name.split("_")) + "Entry"
    )
    entry.options.map_entry = True
    key = entry.field.add(name="key", number=1, label=Field.LABEL_OPTIONAL)
    key.type = Field.TYPE_STRING
    _set_type(entry.field.add(name="value", number=2, label=Field.LABEL_OPTIONAL), value, set())
    field = message.field.add(name=name, number=number, label=Field.LABEL_REPEATED)
    field.type = Field.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"


def _add_field(
    message: descriptor_pb2.DescriptorProto, words: list[str], enums: set[str]
) -> descriptor_pb2.FieldDescriptorProto | None:
    """Add the field of a line. Answers it if it is `optional`."""
    name, number, *kind = words
    if kind[0] == "map":
        _add_map(message, name, int(number), kind[1])
        return None
    label = Field.LABEL_REPEATED if kind[0] == "repeated" else Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    _set_type(field, kind[kind[0] in ("repeated", "optional")], enums)
    if "in" in kind:
        oneofs = [oneof.name for oneof in message.oneof_decl]
        if kind[-1] not in oneofs:
            message.oneof_decl.add(name=kind[-1])
        field.oneof_index = [oneof.name for oneof in message.oneof_decl].index(kind[-1])
    return field if kind[0] == "optional" else None


def _file() -> descriptor_pb2.FileDescriptorProto:
    """The table as protoc would describe it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tinker_public.proto", package=PACKAGE, syntax="proto3"
    )
    lines = [line.split() for line in TABLE.splitlines() if line.strip()]
    enums = {words[1] for words in lines if words[0] == "enum"}
    presence: list[tuple[descriptor_pb2.DescriptorProto, descriptor_pb2.FieldDescriptorProto]] = []
    holder: descriptor_pb2.DescriptorProto | descriptor_pb2.EnumDescriptorProto
    for words in lines:
        if words[0] == "enum":
            holder = file.enum_type.add(name=words[1])
        elif words[0] == "message":
            holder = file.message_type.add(name=words[1])
        elif isinstance(holder, descriptor_pb2.EnumDescriptorProto):
            holder.value.add(name=words[0], number=int(words[1]))
        elif (field := _add_field(holder, words, enums)) is not None:
            presence.append((holder, field))
    for message, field in presence:  # their oneofs have to come after the real ones
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{field.name}")
    return file


@pytest.fixture(scope="session")
def tinker_public() -> Mapping[str, type[Message]]:
    """The classes of Tinker's public messages by name."""
    pool = descriptor_pool.DescriptorPool()
    file = pool.AddSerializedFile(_file().SerializeToString())
    return {
        name: message_factory.GetMessageClass(descriptor)
        for name, descriptor in file.message_types_by_name.items()
    }
