"""Conversations as messages of the contract, from the dicts that everybody has them in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tinkergate.v1 import ChatMessage, Conversation, ToolCall

_TEXTS = {"tool_call_id": "tool_call_id", "name": "name", "reasoning": "reasoning"}
_KNOWN = frozenset({"role", "content", "weight", "tool_calls", "reasoning_content", *_TEXTS})

Message = Mapping[str, Any] | ChatMessage
"""A message: `ChatMessage`, or a dict with "role" and "content", and as needed "reasoning" (or
"reasoning_content"), "tool_calls", "tool_call_id", "name" and "weight"."""


def conversation(
    messages: Iterable[Message], tools: Iterable[Mapping[str, Any]] = ()
) -> Conversation:
    """Messages in order, and the tools that the model may call, each a JSON schema.

    Tool calls are dicts with "name" and "arguments" (a dict or JSON), which may stand in
    "function" as other programs write them, and perhaps "id". Raises ValueError for what has not
    this form.
    """
    return Conversation(
        messages=[_message(f"messages[{i}]", message) for i, message in enumerate(messages)],
        tools_json=[json.dumps(tool, ensure_ascii=False) for tool in tools],
    )


def message_dict(message: ChatMessage) -> dict[str, Any]:
    """A message as `conversation` takes it; what is empty is left out, but for the content."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    for name in _TEXTS:
        if getattr(message, name):
            told[name] = getattr(message, name)
    if message.tool_calls:
        told["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.loads(call.arguments_json or "{}"),
                },
            }
            for call in message.tool_calls
        ]
    if message.HasField("weight"):
        told["weight"] = message.weight
    return told


def _message(place: str, message: Message) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    if unknown := message.keys() - _KNOWN:
        raise ValueError(f"{place}.{min(unknown)}: is not known; there are {sorted(_KNOWN)}")
    told = ChatMessage(
        role=_text(f"{place}.role", message.get("role")),
        content=_text(f"{place}.content", message.get("content") or ""),
        tool_calls=[
            _tool_call(f"{place}.tool_calls[{i}]", call)
            for i, call in enumerate(message.get("tool_calls") or ())
        ],
    )
    for name, field in (*_TEXTS.items(), ("reasoning_content", "reasoning")):
        if message.get(name):
            setattr(told, field, _text(f"{place}.{name}", message[name]))
    weight = message.get("weight")
    if weight is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"{place}.weight: is {weight!r}; must be a number")
        told.weight = weight
    return told


def _tool_call(place: str, call: Any) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise ValueError(f"{place}: must be an object with name and arguments")
    arguments = function.get("arguments") or {}
    return ToolCall(
        id=_text(f"{place}.id", call.get("id") or ""),
        name=_text(f"{place}.name", function.get("name")),
        arguments_json=(
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        ),
    )


def _text(place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: is {value!r}; must be a text")
    return value
