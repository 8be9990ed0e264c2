from __future__ import annotations

from pathlib import Path

import pytest

from tinkergate.cli.conversations import DataError, read_examples

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def written(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return path


def test_conversations_and_pairs_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, "", '{"prompt": "p", "completion": "c", "note": 1}', "  ", GOOD)
    conversation, pair, last = read_examples(path)
    assert conversation.place == f"{path}:1"
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert not conversation.is_pair
    assert pair.is_pair
    assert [message["content"] for message in pair.messages] == ["p", "c"]
    assert last.place == f"{path}:5"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON (Expecting property name"),
        (b'{"prompt": "\xff"}', "is not UTF-8 ("),
        ("[]", "must be a JSON object"),
        ("{}", 'must have "messages", or "prompt" and "completion"'),
        ('{"prompt": "p"}', "completion: must be a text that is not empty"),
        ('{"prompt": 1, "completion": "c"}', "prompt: must be a text that is not empty"),
        ('{"messages": []}', "messages: must be a list that is not empty"),
        ('{"messages": "hi"}', "messages: must be a list that is not empty"),
        ('{"messages": ["hi"]}', "messages[0]: must be an object with role and content"),
        (
            '{"messages": [{"role": "robot", "content": "a"}]}',
            "messages[0].role: is 'robot'; must be one of system, user, assistant, tool",
        ),
        (
            '{"messages": [{"role": "user", "content": ""}]}',
            "messages[0].content: must be a text that is not empty",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}]}',
            "messages: has no assistant message, so there is nothing to learn",
        ),
    ],
)
def test_a_bad_line_is_named_with_the_rule(tmp_path: Path, line: str | bytes, said: str) -> None:
    path = written(tmp_path, GOOD, line, GOOD)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:2: {said}")


def test_all_bad_lines_are_named_up_to_a_few(tmp_path: Path) -> None:
    path = written(tmp_path, *["[]"] * 13)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}:1: must be a JSON object"
    assert lines[9] == f"{path}:10: must be a JSON object"
    assert lines[10:] == ["and 3 more"]


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no examples"):
        read_examples(written(tmp_path, "", " "))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        read_examples(tmp_path / "none.jsonl")
