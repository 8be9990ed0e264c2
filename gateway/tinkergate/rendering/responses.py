"""Sampled tokens as messages.

Two formats are read, where the model's template shows that it uses them: thoughts in
`<think>...</think>` before the words, and calls in `<tool_call>{"name": ..., "arguments":
{...}}</tool_call>` (Hermes, Qwen). What does not keep to them stays content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tinkergate.rendering.texts import read_tokens
from tinkergate.rendering.tokenizer import ChatTokenizer
from tinkergate.v1 import ChatMessage, ParsedMessage, ParseResponseResponse, ToolCall

_THINK, _THOUGHT = "<think>", "</think>"
_CALL, _CALLED = "<tool_call>", "</tool_call>"
_MARKUP = frozenset({_THINK, _THOUGHT, _CALL, _CALLED})


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_json)


def parse_responses(
    packed: Sequence[bytes], vocab_size: int
) -> Callable[[ChatTokenizer], ParseResponseResponse]:
    """Work for a tokenizer: one message a sequence. Raises GatewayError INVALID for what are no
    tokens of it; see `read_tokens`."""

    def work(tokenizer: ChatTokenizer) -> ParseResponseResponse:
        sequences = read_tokens(packed, vocab_size, tokenizer)
        return ParseResponseResponse(messages=[_parse(tokenizer, each) for each in sequences])

    return work


def _parse(tokenizer: ChatTokenizer, tokens: NDArray[np.int32]) -> ParsedMessage:
    ends = np.flatnonzero(np.isin(tokens, tokenizer.stop_tokens))
    complete = bool(ends.size)
    if complete:
        tokens = tokens[: ends[0]]
    # Of the special tokens only those that are read below have a meaning inside of a message.
    hidden = [t for t, text in tokenizer.special_tokens.items() if text not in _MARKUP]
    text = tokenizer.decode(tokens[~np.isin(tokens, hidden)])
    message = ChatMessage(role="assistant")
    if tokenizer.knows(_THINK, _THOUGHT):
        # Thoughts that the prompt opens and nothing closes are only thoughts if they were cut off:
        # a prompt may have closed them, too.
        is_open = tokenizer.opens_thoughts and (_THOUGHT in text or not complete)
        message.reasoning, text = _split_thoughts(text, is_open)
    if tokenizer.knows(_CALL):
        text, calls = _split_calls(text)
        message.tool_calls.extend(calls)
    message.content = text
    return ParsedMessage(message=message, complete=complete)


def _split_thoughts(text: str, already_open: bool) -> tuple[str, str]:
    """The thoughts, and what comes after them."""
    begun = text.lstrip()
    if begun.startswith(_THINK):
        text = begun[len(_THINK) :]
    elif not already_open:
        return "", text
    thoughts, _, rest = text.partition(_THOUGHT)
    return thoughts.strip("\n"), rest.lstrip("\n")


def _split_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The text without the calls in it, and the calls."""
    kept: list[str] = []
    calls: list[ToolCall] = []
    place = 0
    while (start := text.find(_CALL, place)) >= 0:
        found = _read_call(text, start + len(_CALL))
        if found is None:
            kept.append(text[place : start + len(_CALL)])
            place = start + len(_CALL)
            continue
        call, end = found
        calls.append(call)
        # The templates write one line break before each call.
        kept.append(text[place:start].removesuffix("\n"))
        place = end
    kept.append(text[place:])
    return "".join(kept), calls


def _read_call(text: str, start: int) -> tuple[ToolCall, int] | None:
    """The call whose object begins at `start`, and the end of its closing tag; None if there is
    none that keeps to the format."""
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    end += len(text[end:]) - len(text[end:].lstrip())
    if not text.startswith(_CALLED, end) or not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", {})
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    try:
        call = ToolCall(name=name, arguments_json=json.dumps(arguments, ensure_ascii=False))
    except ValueError:  # of half a surrogate pair, which no message can hold
        return None
    return call, end + len(_CALLED)
