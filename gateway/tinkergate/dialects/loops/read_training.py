"""Bodies of POST forward and forward_backward as messages of the contract (wire sections 5.2 to 6).

What Loops knows and the contract has in another form:

- a target of -100 is not scored: it becomes a weight of 0, and its logprob is told as null;
- cross_entropy without targets scores each token by those before it;
- one advantage stands for a whole row; where it is 0, the logprob is told as 0;
- gradients are divided by the number of tokens at the optimizer step, unless cross_entropy is told
  `skip_token_normalization`.

Raises GatewayError (INVALID), which names the field, its value and the rule.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinkergate.dialects.loops.tensors_json import tensor_from_json
from tinkergate.dialects.tinker.inputs_json import chunk_from_json
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.read_requests import read_settings
from tinkergate.errors import invalid_field
from tinkergate.tensors import array_from_tensor, tensor_from_array, tokens_from_bytes
from tinkergate.v1 import (
    Chunk,
    Datum,
    ForwardBackwardRequest,
    ForwardRequest,
    Normalization,
    Tensor,
)

PassRequest: TypeAlias = ForwardRequest | ForwardBackwardRequest

IGNORED = -100
"""The target that is not scored."""

SKIP = "skip_token_normalization"
"""The setting of cross_entropy that asks for plain sums, and the figure that confirms it."""

TARGETS, WEIGHTS, ADVANTAGES = "target_tokens", "weights", "advantages"


class Loss(NamedTuple):
    """What has to be known of a loss to read its inputs."""

    weighted: bool
    """Whether targets can be left out by a weight of 0."""
    paired: bool = False
    """Whether datums come in pairs."""


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(weighted=True),
    "importance_sampling": Loss(weighted=False),
    "ppo": Loss(weighted=False),
    "cispo": Loss(weighted=False),
    "dro": Loss(weighted=False),
    "dpo": Loss(weighted=True, paired=True),
    "dppo": Loss(weighted=False),
}
"""The losses that Loops documents (wire section 6)."""


class Mask(NamedTuple):
    """Rows of a datum whose logprobs are told as something else."""

    packed: bytes
    """One bit an element of the targets, compressed: masks are long runs."""
    fill: float
    """What they are told as; NaN is null."""

    @classmethod
    def of(cls, places: NDArray[np.bool_], fill: float) -> Mask | None:
        """The mask; None if there is no such place."""
        return cls(zlib.compress(np.packbits(places).tobytes(), 1), fill) if places.any() else None

    def apply(self, logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logprobs of the datum as they are told."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        places = np.unpackbits(bits, count=logprobs.size).astype(bool).reshape(logprobs.shape)
        return np.where(places, np.float32(self.fill), logprobs)


@dataclass(frozen=True)
class PassNote:
    """What telling the result of a pass takes beside the result."""

    summed: bool
    """Whether plain sums were asked for."""
    paired: bool
    """Whether the loss takes pairs."""
    masks: tuple[Mask | None, ...] = ()
    """One a datum; none at all if no datum has one."""

    @property
    def size(self) -> int:
        """Roughly the bytes that it takes."""
        return 200 + sum(64 + len(mask.packed) for mask in self.masks if mask is not None)


def pass_request(fields: Fields, *, forward_only: bool) -> tuple[PassRequest, PassNote]:
    """The request, but for its model and its place, and what to keep for its answer."""
    request: PassRequest = ForwardRequest() if forward_only else ForwardBackwardRequest()
    request.loss_fn = fields.optional_text("loss_fn") or "cross_entropy"
    loss = LOSSES.get(request.loss_fn)
    if loss is None:
        raise fields.wrong("loss_fn", f"must be one of {', '.join(LOSSES)}")
    top_k = fields.optional_integer("top_k_logprobs") or 0
    if top_k:
        raise fields.wrong(
            "top_k_logprobs", "must be 0: likeliest tokens of training are not offered here"
        )
    summed = _read_config(request, fields)
    if isinstance(request, ForwardBackwardRequest):
        per_token = Normalization.NORMALIZATION_PER_TOKEN
        request.normalization = Normalization.NORMALIZATION_SUM if summed else per_token
    masks = []
    for index, value in enumerate(fields.items("data")):
        datum, mask = _datum(value, f"{fields.path('data')}[{index}]", request.loss_fn, loss)
        request.data.append(datum)
        masks.append(mask)
    some = any(mask is not None for mask in masks)
    return request, PassNote(summed, loss.paired, tuple(masks) if some else ())


def token_counts(request: PassRequest) -> list[int]:
    """How many tokens each datum has, those that its images are expected to take included."""
    return [sum(map(_length, datum.model_input)) for datum in request.data]


def _length(chunk: Chunk) -> int:
    if chunk.WhichOneof("chunk") == "encoded_text":
        return len(chunk.encoded_text.tokens) // 4
    return chunk.image.expected_tokens


def _read_config(request: PassRequest, fields: Fields) -> bool:
    """Read the settings of the loss; answers whether plain sums are asked for."""
    config = fields.optional_fields("loss_fn_config")
    if config is None:
        return False
    if request.loss_fn != "cross_entropy":
        read_settings(config, request.loss_fn_config)
        return False
    read_settings(config, request.loss_fn_config, leave_out=SKIP)
    return config.flag(SKIP)


def _datum(value: object, field: str, loss_fn: str, loss: Loss) -> tuple[Datum, Mask | None]:
    fields = Fields(value, field)
    if "routed_experts_ref" in fields:
        raise fields.wrong("routed_experts_ref", "must be null: routing is not replayed here")
    datum = Datum(model_input=chunks(fields.fields("model_input")))
    given = fields.optional_fields("loss_fn_inputs") or Fields({}, fields.path("loss_fn_inputs"))
    inputs: dict[str, Tensor] = {
        name: tensor_from_json(tensor, given.path(name))
        for name, tensor in given.value.items()
        # Programs keep it beside the inputs for their own figures.
        if name != "mask" and tensor is not None
    }
    mask: Mask | None = None
    if TARGETS not in inputs and loss_fn == "cross_entropy":
        mask = _add_own_targets(datum, inputs, given)
    elif TARGETS in inputs and loss.weighted:
        mask = _leave_out_ignored(inputs)
    elif ADVANTAGES in inputs:
        mask = _spread_advantage(inputs)
    for name, tensor in inputs.items():
        datum.loss_fn_inputs[name].CopyFrom(tensor)
    return datum, mask


def chunks(fields: Fields) -> list[Chunk]:
    """The chunks of a model input: tokens, and images that say how many tokens they take."""
    return chunk_list(fields.items("chunks"), fields.path("chunks"))


def chunk_list(values: list[Any], field: str) -> list[Chunk]:
    """The chunks of a list at the path `field`."""
    read = []
    for index, value in enumerate(values):
        path = f"{field}[{index}]"
        chunk = chunk_from_json(value, path)
        match chunk.WhichOneof("chunk"):
            case "encoded_text":
                pass
            case "image":
                if chunk.image.expected_tokens < 1:
                    raise invalid_field(f"{path}.expected_tokens", "is not given; must be positive")
            case _:
                raise invalid_field(f"{path}.type", "must be 'encoded_text' or 'image'")
        read.append(chunk)
    return read


def _add_own_targets(datum: Datum, inputs: dict[str, Tensor], given: Fields) -> Mask | None:
    """Score each token by those before it: row i has token i + 1, and the last row nothing."""
    if any(chunk.WhichOneof("chunk") != "encoded_text" for chunk in datum.model_input):
        raise invalid_field(given.path(TARGETS), "is not given; a datum with images needs it")
    tokens = tokens_from_bytes(b"".join(c.encoded_text.tokens for c in datum.model_input))
    targets = np.append(tokens[1:], 0).astype("<i8")[: tokens.size]
    inputs[TARGETS] = tensor_from_array(targets)
    last = np.arange(targets.size) == targets.size - 1
    _zero_weights(inputs, last)
    return Mask.of(last, 0.0)


def _leave_out_ignored(inputs: dict[str, Tensor]) -> Mask | None:
    targets = _array(inputs[TARGETS])
    ignored = targets == IGNORED
    if not ignored.any():
        return None
    inputs[TARGETS] = tensor_from_array(np.where(ignored, 0, targets))
    _zero_weights(inputs, ignored)
    return Mask.of(ignored, math.nan)


def _zero_weights(inputs: dict[str, Tensor], places: NDArray[np.bool_]) -> None:
    """Give the rows the weight 0. Weights that are not given are 1; those of another shape are
    left to be refused."""
    given = _array(inputs[WEIGHTS]) if WEIGHTS in inputs else np.ones(places.shape, np.float32)
    if given.shape == places.shape:
        inputs[WEIGHTS] = tensor_from_array(np.where(places, np.float32(0), given))


def _spread_advantage(inputs: dict[str, Tensor]) -> Mask | None:
    """Have one advantage stand for the row."""
    advantages = _array(inputs[ADVANTAGES])
    shape = _array(inputs[TARGETS]).shape if TARGETS in inputs else advantages.shape
    if advantages.shape == (1,) and shape != (1,):
        advantages = np.full(shape, advantages[0], advantages.dtype)
        inputs[ADVANTAGES] = tensor_from_array(advantages)
    if advantages.shape != shape:
        return None
    return Mask.of(advantages == 0, 0.0)


def _array(tensor: Tensor) -> NDArray[Any]:
    return array_from_tensor(tensor)
