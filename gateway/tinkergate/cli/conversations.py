"""Training data: a JSONL file with one example a line, either of

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "completion": "..."}

A conversation may have "tools" beside its messages; a message "reasoning", "tool_calls",
"tool_call_id", "name", and a "weight" of its own in training. Other keys are left alone, so that a
line can carry notes of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
_MORE = ("reasoning", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight")
_TOLD = 10


class DataError(Exception):
    """The data cannot be used. Each line of the text names a place and the rule it breaks."""


@dataclass(frozen=True)
class Example:
    """One line of the file."""

    place: str
    """file:line, for people."""
    messages: Sequence[dict[str, Any]]
    """With "role" and "content" and perhaps more; a pair is a user's and an assistant's message."""
    is_pair: bool
    """Whether the line was a prompt and a completion."""
    tools: Sequence[dict[str, Any]] = ()
    """The tools that the model may call."""


def read_examples(path: Path) -> list[Example]:
    """All examples of a file. Raises DataError, with the first few bad lines."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    examples: list[Example] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            examples.append(_read_line(place, line))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise DataError(listing(problems))
    if not examples:
        raise DataError(f"{path}: has no examples")
    return examples


def listing(problems: Sequence[str]) -> str:
    """The first few problems, a line each, and how many more there are."""
    told = list(problems[:_TOLD])
    if len(problems) > _TOLD:
        told.append(f"and {len(problems) - _TOLD} more")
    return "\n".join(told)


def read_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises ValueError with the rule that the line breaks."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    return value


def _read_line(place: str, line: bytes) -> Example:
    value = read_object(line)
    if "messages" in value:
        messages = read_messages(value["messages"])
        if not any(message["role"] == "assistant" or "weight" in message for message in messages):
            raise ValueError("messages: has no assistant message, so there is nothing to learn")
        return Example(place, messages, is_pair=False, tools=read_tools(value.get("tools", [])))
    if "prompt" in value or "completion" in value:
        pair = [
            {"role": "user", "content": _text(value, "prompt")},
            {"role": "assistant", "content": _text(value, "completion")},
        ]
        return Example(place, pair, is_pair=True)
    raise ValueError('must have "messages", or "prompt" and "completion"')


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Checked tools. Raises ValueError with the rule that they break."""
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError("tools: must be a list of objects")
    return value


def read_messages(value: Any) -> list[dict[str, Any]]:
    """Checked messages. Raises ValueError with the rule that they break."""
    if not isinstance(value, list) or not value:
        raise ValueError("messages: must be a list that is not empty")
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(value):
        field = f"messages[{index}]"
        if not isinstance(message, dict):
            raise ValueError(f"{field}: must be an object with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"{field}.role: is {role!r}; must be one of {', '.join(ROLES)}")
        more = {key: message[key] for key in _MORE if message.get(key) is not None}
        # Calls and thoughts may stand alone.
        wordless = any(more.get(key) for key in ("tool_calls", "reasoning", "reasoning_content"))
        if wordless and not message.get("content"):
            content = ""
        else:
            content = _text(message, "content", f"{field}.")
        messages.append({"role": role, "content": content, **more})
    return messages


def read_tokens(value: Any) -> list[int]:
    """Checked token ids. Raises ValueError with the rule that they break."""
    if not isinstance(value, list) or not value:
        raise ValueError("tokens: must be a list that is not empty")
    for index, token in enumerate(value):
        if type(token) is not int or not 0 <= token < 2**31:
            raise ValueError(f"tokens[{index}]: is {token!r}; must be a token id")
    return value


def _text(value: dict[str, Any], key: str, prefix: str = "") -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise ValueError(f"{prefix}{key}: must be a text that is not empty")
    return text
