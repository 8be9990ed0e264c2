"""Texts as tokens and back, without any template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tinkergate.errors import invalid_field
from tinkergate.rendering.tokenizer import ChatTokenizer
from tinkergate.tensors import token_bytes, tokens_from_bytes
from tinkergate.v1 import DecodeResponse, EncodeResponse


def encode_texts(
    texts: Sequence[str], *, add_special_tokens: bool
) -> Callable[[ChatTokenizer], EncodeResponse]:
    """Work for a tokenizer: the tokens of each text."""

    def work(tokenizer: ChatTokenizer) -> EncodeResponse:
        encoded = (tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts)
        return EncodeResponse(tokens=[token_bytes(tokens) for tokens in encoded])

    return work


def decode_texts(
    packed: Sequence[bytes], vocab_size: int, *, skip_special_tokens: bool
) -> Callable[[ChatTokenizer], DecodeResponse]:
    """Work for a tokenizer: the text of each sequence of token ids. Raises INVALID for what are no
    tokens; see `read_tokens`."""

    def work(tokenizer: ChatTokenizer) -> DecodeResponse:
        sequences = read_tokens(packed, vocab_size, tokenizer)
        return DecodeResponse(
            texts=[
                tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
                for tokens in sequences
            ]
        )

    return work


def read_tokens(
    packed: Sequence[bytes], vocab_size: int, tokenizer: ChatTokenizer
) -> list[NDArray[np.int32]]:
    """int32 (N,) a sequence: token ids of the model or its tokenizer, whichever has more (models
    often have a few that stand for nothing). Raises INVALID."""
    bound = max(vocab_size, tokenizer.size)
    sequences = []
    for number, data in enumerate(packed):
        try:
            tokens = tokens_from_bytes(data)
        except ValueError as error:
            raise invalid_field(f"tokens[{number}]", str(error)) from None
        strange = (tokens < 0) | (tokens >= bound)
        if strange.any():
            index = int(np.argmax(strange))
            raise invalid_field(
                f"tokens[{number}][{index}]", f"is {tokens[index]}; must lie in 0..{bound - 1}"
            )
        sequences.append(tokens)
    return sequences
