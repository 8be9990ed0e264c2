"""Training examples and prompts, built from numpy arrays and lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinkergate.tensors import tensor_from_array, token_bytes
from tinkergate.v1 import Chunk, Datum, EncodedTextChunk, ImageChunk, ModelInput, ReverseKlDatum

Tokens = Sequence[int] | NDArray[np.integer[Any]]
_MAX_TOKEN = 2**31 - 1


def text(tokens: Tokens) -> Chunk:
    """A chunk of token ids. Raises ValueError for what are no token ids."""
    return Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(token_array(tokens))))


def image(data: bytes, format: str, *, expected_tokens: int | None = None) -> Chunk:
    """A chunk that holds an encoded image; `format` is "png" or "jpeg"."""
    return Chunk(image=ImageChunk(data=data, format=format, expected_tokens=expected_tokens))


def model_input(*parts: Tokens | Chunk) -> ModelInput:
    """What a model reads: token ids and chunks, in reading order."""
    return ModelInput(chunks=[part if isinstance(part, Chunk) else text(part) for part in parts])


def datum(
    tokens: Tokens | ModelInput,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    **loss_inputs: ArrayLike,
) -> Datum:
    """One training example, its targets already shifted: row i of every loss input is about the
    prediction after the inputs 0..i.

    Args:
        tokens: The model input, N tokens.
        targets: int, (N,), or (N, K) for K weighted targets a position.
        weights: float, shaped like `targets`; absent means 1 everywhere.
        **loss_inputs: Further arrays by the names that the loss asks for, such as `advantages`.

    Raises ValueError for what are no token ids.
    """
    if not isinstance(tokens, ModelInput):
        tokens = model_input(tokens)
    inputs = {"target_tokens": _array("targets", targets, "iu")}
    if weights is not None:
        inputs["weights"] = _array("weights", weights, "fiub").astype(np.float32)
    for name, values in loss_inputs.items():
        inputs[name] = _array(name, values, "fiub")
    return Datum(
        model_input=tokens.chunks,
        loss_fn_inputs={name: tensor_from_array(array) for name, array in inputs.items()},
    )


def supervised_datum(tokens: Tokens, loss_mask: ArrayLike) -> Datum:
    """One example of text to learn: every token is predicted from those before it.

    Args:
        tokens: The whole text, N + 1 token ids, N >= 1.
        loss_mask: A number a token: how much learning it counts, 0 for not at all. That of the
            first token has no effect, since nothing comes before it.

    Raises ValueError for arrays that do not fit together.
    """
    ids = token_array(tokens)
    mask = _array("loss_mask", loss_mask, "fiub").astype(np.float32)
    if ids.size < 2:
        raise ValueError(f"tokens has {ids.size} entries; must have at least 2")
    if mask.shape != ids.shape:
        raise ValueError(f"loss_mask has shape {mask.shape}; must be that of tokens, {ids.shape}")
    return datum(ids[:-1], ids[1:], mask[1:])


def reverse_kl_datum(
    tokens: Tokens, loss_mask: ArrayLike, reference_tokens: Tokens
) -> ReverseKlDatum:
    """One text on which a model and a reference are compared, for `forward_backward_reverse_kl`.

    Args:
        tokens: The whole text as the model reads it, N + 1 token ids, N >= 1.
        loss_mask: A number a token: how much the divergence of its prediction counts, 0 for not at
            all. That of the first token has no effect, since nothing comes before it.
        reference_tokens: The text as the reference reads it: any prompt, and then the same tokens
            from the one before the first that counts on.

    Raises ValueError for arrays that do not fit together.
    """
    own = supervised_datum(tokens, loss_mask)
    reference = token_array(reference_tokens)
    return ReverseKlDatum(
        student_input=ModelInput(chunks=own.model_input),
        reference_input=model_input(reference[:-1]),
        target_tokens=own.loss_fn_inputs["target_tokens"],
        weights=own.loss_fn_inputs["weights"],
    )


def token_array(tokens: Tokens) -> NDArray[np.integer[Any]]:
    """`tokens` as a flat array of ids. Raises ValueError for what are no token ids."""
    array = _array("tokens", tokens, "iu")
    if array.ndim != 1:
        raise ValueError(f"tokens has shape {array.shape}; must have one dimension")
    if array.size and (array.min() < 0 or array.max() > _MAX_TOKEN):
        index = int(np.argmax((array < 0) | (array > _MAX_TOKEN)))
        raise ValueError(f"tokens[{index}] is {array[index]}; must lie in 0..{_MAX_TOKEN}")
    return array


def _array(name: str, values: ArrayLike, kinds: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.size == 0 and not isinstance(values, np.ndarray):
        return array.astype(np.int64)  # an empty list has no type of its own
    if array.dtype.kind not in kinds:
        wanted = "integers" if kinds == "iu" else "numbers"
        raise ValueError(f"{name} has dtype {array.dtype}; must be {wanted}")
    return array
