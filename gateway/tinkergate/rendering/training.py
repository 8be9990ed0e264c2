"""Conversations as datums for the cross_entropy loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.errors import invalid_field
from tinkergate.rendering.messages import Chat, each_chat, read_variables
from tinkergate.rendering.tokenizer import ChatTokenizer
from tinkergate.rendering.turns import Turns
from tinkergate.tensors import tensor_from_array, token_bytes
from tinkergate.v1 import (
    Chunk,
    Datum,
    EncodedTextChunk,
    RenderedDatum,
    RenderTrainingRequest,
    RenderTrainingResponse,
    TrainOn,
)


def render_training(
    request: RenderTrainingRequest, max_tokens: int
) -> Callable[[ChatTokenizer], RenderTrainingResponse]:
    """Work for a tokenizer: one datum a conversation, cut to `max_tokens` tokens (0 leaves them
    whole). Raises GatewayError: INVALID for what the template refuses or whose parts cannot be told
    apart, UNSUPPORTED without a template."""

    def work(tokenizer: ChatTokenizer) -> RenderTrainingResponse:
        variables = read_variables(request.template_variables_json)

        def datum(chat: Chat) -> RenderedDatum:
            tokens, weights = weigh(tokenizer, chat, variables, request.train_on)
            return _datum(chat, tokens, weights, max_tokens)

        return RenderTrainingResponse(datums=each_chat(request.conversations, tokenizer, datum))

    return work


def weigh(
    tokenizer: ChatTokenizer,
    chat: Chat,
    variables: Mapping[str, Any],
    train_on: TrainOn.ValueType,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The conversation's tokens, int32 (N,), and their weights, float32 (N,). Raises INVALID."""
    turns = Turns(tokenizer, chat, variables)
    everything = train_on == TrainOn.TRAIN_ON_ALL_TOKENS
    base = 1.0 if everything else 0.0
    wanted = _message_weights(chat, train_on)
    if not everything and all(weight is None for weight in wanted):
        raise invalid_field(
            f"{chat.field}.messages",
            "has no assistant message, and none with a weight, so there is nothing to learn",
        )
    # The borders of messages that differ from the rest are looked for, and no others.
    apart = [index for index, weight in enumerate(wanted) if weight not in (None, base)]
    found = turns.spans(apart)
    weights = np.full(turns.tokens.size, base, dtype=np.float32)
    for index, spans in zip(apart, found, strict=True):
        for start, end in spans:
            weights[start:end] = wanted[index]
    return turns.tokens, weights


def _message_weights(chat: Chat, train_on: TrainOn.ValueType) -> list[float | None]:
    """One a message: its own weight, else that of `train_on`; None where the rest's holds."""
    weights = list(chat.weights)
    if train_on == TrainOn.TRAIN_ON_ALL_TOKENS:
        return weights
    assistants = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if train_on == TrainOn.TRAIN_ON_LAST_ASSISTANT_MESSAGE:
        assistants = assistants[-1:]
    for index in assistants:
        if weights[index] is None:
            weights[index] = 1.0
    return weights


def _datum(
    chat: Chat, tokens: NDArray[np.int32], weights: NDArray[np.float32], max_tokens: int
) -> RenderedDatum:
    total = tokens.size
    if total < 2:
        raise invalid_field(
            chat.field, f"has {total} tokens; must have at least 2, one to predict the next from"
        )
    if max_tokens and total > max_tokens:
        tokens, weights = tokens[:max_tokens], weights[:max_tokens]
    # Row i of the loss inputs is about the prediction after the inputs 0..i.
    inputs: dict[str, NDArray[Any]] = {
        "target_tokens": tokens[1:].astype(np.int64),
        "weights": weights[1:],
    }
    return RenderedDatum(
        datum=Datum(
            model_input=[Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens[:-1])))],
            loss_fn_inputs={name: tensor_from_array(array) for name, array in inputs.items()},
        ),
        total_tokens=total,
        truncated=tokens.size < total,
    )
