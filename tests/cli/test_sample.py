from __future__ import annotations

import json
from typing import Any

import pytest


def test_answers_are_reproducible_by_their_seed(tinkergate: Any) -> None:
    flags = ("--num-samples", 3, "--max-tokens", 8, "--seed", 4, "--json")
    one, two = (tinkergate("sample", "What is it?", *flags) for _ in range(2))
    assert one.code == 0, one.err
    answers = sorted(map(json.loads, one.out.splitlines()), key=lambda answer: answer["index"])
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert set(answers[0]) == {"index", "text", "stop_reason", "tokens"}
    assert sorted(one.out.splitlines()) == sorted(two.out.splitlines())


def test_text_is_for_people(tinkergate: Any) -> None:
    done = tinkergate("sample", "What?", "--raw", "--max-tokens", 3, "--logprobs", "--stop", "zz")
    assert done.code == 0, done.err
    assert "3 tokens, logprob -" in done.out


def test_chat_and_raw_are_different_prompts(tinkergate: Any) -> None:
    flags = ("--temperature", 0, "--max-tokens", 16, "--json", "--top-k", 5, "--top-p", 0.9)
    chat, raw = (
        json.loads(tinkergate("sample", "What?", mode, *flags).out)["tokens"]
        for mode in ("--chat", "--raw")
    )
    assert chat != raw


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "nope"], 1, "the gateway has no model 'nope'"),
        (["--model-path", "tinker://x/weights/y"], 1, "tinker://x/weights/y"),
        (["--model-path", "tinker://x/weights/y", "--model", "m"], 2, "not both"),
        (["--top-p", "7"], 1, "sampling_params.top_p"),
    ],
)
def test_wrong_use_is_explained(tinkergate: Any, flags: list[str], code: int, said: str) -> None:
    done = tinkergate("sample", "What?", *flags)
    assert done.code == code
    assert said in done.err
