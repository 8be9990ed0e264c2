"""The data set is what its README says: every word of every answer follows the rule."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data" / "pig_latin.jsonl"
EXAMPLES = [json.loads(line) for line in DATA.read_text("ascii").splitlines()]
WORD = re.compile(r"[A-Za-z]+")


def pig_latin(word: str) -> str:
    """The rule of data/README.md, step by step."""
    letters = list(word.lower())
    if letters[0] in "aeiou":
        ending = "way"
    else:
        moved = [letters.pop(0)]
        while letters and letters[0] not in "aeiouy":
            moved.append(letters.pop(0))
        if moved[-1] == "q" and letters and letters[0] == "u":
            moved.append(letters.pop(0))
        ending = "".join(moved) + "ay"
    changed = "".join(letters) + ending
    return changed.capitalize() if word[0].isupper() else changed


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("and", "andway"),
        ("color", "olorcay"),
        ("quiet", "ietquay"),
        ("you", "ouyay"),
        ("fly", "yflay"),
        ("Three", "Eethray"),
        ("A", "Away"),
    ],
)
def test_the_rule(word: str, expected: str) -> None:
    assert pig_latin(word) == expected


def test_there_are_about_forty_conversations_and_no_question_twice() -> None:
    questions = [example["messages"][0]["content"] for example in EXAMPLES]
    assert len(set(questions)) == len(questions) >= 40


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["english"][:20])
def test_every_word_of_an_answer_follows_the_rule(example: dict[str, object]) -> None:
    question, answer = example["messages"]  # type: ignore[misc]
    assert (question["role"], answer["role"]) == ("user", "assistant")
    english = str(example["english"])
    assert answer["content"] == WORD.sub(lambda word: pig_latin(word.group()), english)
    # What is in place of the letters stays.
    assert WORD.sub("", answer["content"]) == WORD.sub("", english)
