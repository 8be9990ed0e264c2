from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

CHAT = {
    "messages": [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me.", "weight": 0.5},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "You.\nToo."},
    ]
}


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_people_see_what_is_learned(tinkergate: Any) -> None:
    done = tinkergate("render", "-", stdin=lines(CHAT))
    assert done.code == 0, done.err
    first, *shown = done.out.splitlines()
    assert first.startswith("-:1: ")
    assert first.endswith(" with weight")
    assert shown == [
        "     0 | <|im_start|>user\\n",
        "       | Who?<|im_end|>\\n",
        "       | <|im_start|>assistant\\n",
        "   0.5 | Me.<|im_end|>",
        "     0 | \\n",
        "       | <|im_start|>user\\n",
        "       | And?<|im_end|>\\n",
        "       | <|im_start|>assistant\\n",
        "     1 | You.\\n",
        "       | Too.<|im_end|>",
        "     0 | \\n",
    ]


def test_programs_get_datums(tinkergate: Any) -> None:
    flags = ("--json", "--train-on", "last_assistant_message", "--max-tokens", 30)
    done = tinkergate("render", "-", *flags, stdin="\n" + lines(CHAT))
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["line"] == 2
    assert told["tokens"][1:] == told["target_tokens"][:-1]
    assert len(told["tokens"]) == len(told["weights"]) == 29
    assert told["truncated"] == (told["total_tokens"] > 30)
    assert set(told["weights"]) <= {0.0, 0.5, 1.0}


def test_prompts_and_what_ends_the_answer(tinkergate: Any) -> None:
    asked = {"messages": CHAT["messages"][:1]}
    done = tinkergate("render", "-", "--prompt", "--json", stdin=lines(asked))
    told = json.loads(done.out)
    assert told["stop_tokens"] == [2]
    shown = tinkergate("render", "-", "--prompt", stdin=lines(asked)).out
    assert shown == "-:1:\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n\n"
    variable = ("--variable", "enable_thinking=false")
    again = tinkergate("render", "-", "--prompt", "--json", *variable, stdin=lines(asked))
    assert json.loads(again.out)["tokens"] == told["tokens"]


def test_sampled_tokens_are_read_back(tinkergate: Any) -> None:
    rendered = json.loads(tinkergate("render", "-", "--json", stdin=lines(CHAT)).out)
    answer = [
        token
        for token, weight in zip(rendered["target_tokens"], rendered["weights"], strict=True)
        if weight == 1
    ]
    sampled = lines({"tokens": answer}, {"tokens": answer[:-1]})
    done = tinkergate("render", "-", "--parse", stdin=sampled)
    assert done.code == 0, done.err
    message = {"role": "assistant", "content": "You.\nToo."}
    assert list(map(json.loads, done.out.splitlines())) == [
        {"line": 1, "message": message, "complete": True},
        {"line": 2, "message": message, "complete": False},
    ]


@pytest.mark.parametrize(
    ("flags", "line", "code", "said"),
    [
        ([], {"messages": []}, 2, "-:1: messages: must be a list that is not empty"),
        ([], {"messages": CHAT["messages"][:1]}, 2, "-:1: messages: has no assistant message"),
        (
            [],
            {"messages": CHAT["messages"], "tools": [{"name": "f"}]},
            2,
            "-:1: tools_json: is given, and the chat template of",
        ),
        ([], {"messages": CHAT["messages"], "tools": 3}, 2, "-:1: tools: must be a list of"),
        (["--parse"], {"tokens": [-1]}, 2, "-:1: tokens[0]: is -1; must be a token id"),
        (["--parse"], {"tokens": [9999]}, 1, "tokens[0][0]: is 9999; must lie in 0..511"),
        (["--parse", "--prompt"], CHAT, 2, "not both"),
        (["--variable", "x"], CHAT, 2, "--variable x: must be NAME=JSON"),
        (["--model", "nope"], CHAT, 1, "the gateway has no model 'nope'"),
    ],
)
def test_wrong_use_is_explained(
    tinkergate: Any, flags: list[str], line: object, code: int, said: str
) -> None:
    done = tinkergate("render", "-", *flags, stdin=lines(line))
    assert done.code == code
    assert said in done.err


def test_a_file_that_is_not_there_is_named(tinkergate: Any, tmp_path: Path) -> None:
    done = tinkergate("render", tmp_path / "none.jsonl")
    assert done.code == 2
    assert "none.jsonl: No such file" in done.err


def test_bad_conversations_of_a_file_to_train_on_are_named_by_line(
    tinkergate: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    good = {"messages": CHAT["messages"][:2]}
    path.write_text(lines(good, {"messages": CHAT["messages"][1:]}, good))
    done = tinkergate("train", path)
    assert done.code == 2
    assert f"{path}:2: messages[0].role: is the assistant's; somebody else must begin" in done.err


def test_a_model_without_a_chat_template_takes_plain_text(
    tinkergate: Any, start_gateway: Any, micro_model_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(micro_model_dir, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    address = start_gateway("--model", str(folder)).address
    data = tmp_path / "data.jsonl"
    flags = ("--model", folder)
    data.write_text(lines({"prompt": "You may", "completion": " copy it"}))
    done = tinkergate("train", data, *flags, "--steps", 1, "--sample", "You", address=address)
    assert done.code == 0, done.err
    assert tinkergate("sample", "You may", *flags, "--max-tokens", 2, address=address).code == 0
    data.write_text(lines(CHAT))
    for command, said in [
        ("train", "1: is a conversation, and the model has no chat template"),
        ("render", "has no chat template; send tokens of plain text"),
    ]:
        done = tinkergate(command, data, *flags, address=address)
        assert said in done.err
        assert done.code != 0
