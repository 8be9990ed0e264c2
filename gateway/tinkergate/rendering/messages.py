"""Conversations of the contract as chat templates take them, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tinkergate.errors import MAX_VIOLATIONS, GatewayError, Violation, invalid, invalid_field
from tinkergate.rendering.tokenizer import ChatTokenizer, Message
from tinkergate.v1 import ChatMessage, Conversation

Result = TypeVar("Result")

_RESERVED = frozenset(
    {
        *("messages", "conversations", "tools", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "return_assistant_tokens_mask"),
    }
)
"""What templates or the library that runs them know by these names already."""


@dataclass(frozen=True)
class Chat:
    """A conversation, ready for a template."""

    field: str
    """Where the request has it, for error messages."""
    messages: Sequence[Message]
    weights: Sequence[float | None]
    """One a message: its own weight, if it has one."""
    tools: Sequence[Mapping[str, Any]]


def read_variables(variables_json: Mapping[str, str]) -> dict[str, Any]:
    """The template's further variables. Raises INVALID."""
    variables = {}
    for name, text in variables_json.items():
        field = f'template_variables_json["{name}"]'
        if name in _RESERVED or not name.isidentifier():
            raise invalid_field(field, f"{name!r} cannot be set; must be a name that is free")
        variables[name] = _json(field, text)
    return variables


def each_chat(
    conversations: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    render: Callable[[Chat], Result],
) -> list[Result]:
    """What `render` answers for each conversation. Raises INVALID with the first rules that any of
    them breaks, and whatever else `render` raises at once."""
    results: list[Result] = []
    violations: list[Violation] = []
    for index, conversation in enumerate(conversations):
        try:
            results.append(render(_read(f"conversations[{index}]", conversation, tokenizer)))
        except GatewayError as error:
            if not error.violations:
                raise
            violations += error.violations
            if len(violations) >= MAX_VIOLATIONS:
                break
    if violations:
        raise invalid(violations)
    return results


def _read(field: str, conversation: Conversation, tokenizer: ChatTokenizer) -> Chat:
    if not conversation.messages:
        raise invalid_field(f"{field}.messages", "is empty; must have at least one message")
    tools = []
    for index, text in enumerate(conversation.tools_json):
        tools.append(_object(f"{field}.tools_json[{index}]", text))
    if tools and not tokenizer.knows("tools"):
        raise _unknown(f"{field}.tools_json", "tools", tokenizer)
    messages = []
    weights: list[float | None] = []
    for index, message in enumerate(conversation.messages):
        place = f"{field}.messages[{index}]"
        messages.append(_message(place, message, tokenizer))
        weights.append(message.weight if message.HasField("weight") else None)
        if message.HasField("weight") and not math.isfinite(message.weight):
            raise invalid_field(f"{place}.weight", f"is {message.weight}; must be finite")
    return Chat(field, messages, weights, tools)


def _message(field: str, message: ChatMessage, tokenizer: ChatTokenizer) -> Message:
    if not message.role:
        raise invalid_field(f"{field}.role", "is empty; must say who speaks")
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        if not tokenizer.knows("reasoning_content", "reasoning", "thinking"):
            raise _unknown(f"{field}.reasoning", "reasoning", tokenizer)
        told["reasoning_content"] = message.reasoning
    if message.tool_calls:
        if not tokenizer.knows("tool_calls"):
            raise _unknown(f"{field}.tool_calls", "tool_calls", tokenizer)
        told["tool_calls"] = [
            _tool_call(f"{field}.tool_calls[{index}]", call)
            for index, call in enumerate(message.tool_calls)
        ]
    for name in ("tool_call_id", "name"):
        if getattr(message, name):
            told[name] = getattr(message, name)
    return told


def _tool_call(field: str, call: Any) -> dict[str, Any]:
    if not call.name:
        raise invalid_field(f"{field}.name", "is empty; must be the tool's name")
    arguments = _object(f"{field}.arguments_json", call.arguments_json or "{}")
    told = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return {"id": call.id, **told} if call.id else told


def _unknown(field: str, what: str, tokenizer: ChatTokenizer) -> GatewayError:
    return invalid_field(
        field, f"is given, and the chat template of {tokenizer.name!r} does not know {what}"
    )


def _object(field: str, text: str) -> dict[str, Any]:
    value = _json(field, text)
    if not isinstance(value, dict):
        raise invalid_field(field, f"is {text[:80]!r}; must be a JSON object")
    return value


def _json(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, f"is {text[:80]!r}, which is not JSON: {error}") from None
