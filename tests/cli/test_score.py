from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinkergate_client import connect


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_every_kind_of_line_is_scored(tinkergate: Any, gateway_process: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    done = tinkergate(
        *("score", "-", "--topk", 2),
        stdin=lines({"tokens": [5, 6, 7], "id": "x"}, {"text": "You may copy"})
        + "\n"
        + lines({"messages": messages}),
    )
    assert done.code == 0, done.err
    scores = [json.loads(line) for line in done.out.splitlines()]
    assert [score["line"] for score in scores] == [1, 2, 4]
    assert scores[0]["id"] == "x"
    with connect(gateway_process.address) as client:
        (expected,) = client.score([[5, 6, 7]])
    assert scores[0]["logprobs"][0] is None
    assert scores[0]["logprobs"][1:] == pytest.approx(expected.logprobs[1:].tolist(), abs=1e-5)
    assert scores[0]["logprob"] == pytest.approx(sum(scores[0]["logprobs"][1:]))
    assert [len(row) for row in scores[0]["topk_tokens"]] == [2, 2, 2]


def test_files_in_and_out(tinkergate: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines(*({"tokens": [5] * (1 + n % 5)} for n in range(50))))
    done = tinkergate("score", source, "-o", target, "--batch-tokens", 16, "--in-flight", 2)
    assert (done.code, done.out) == (0, ""), done.err
    scores = [json.loads(line) for line in target.read_text().splitlines()]
    assert [len(score["logprobs"]) for score in scores] == [1 + n % 5 for n in range(50)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "must be a JSON object"),
        ("{}", 'must have "text" (not empty), "tokens" or "messages"'),
        ('{"text": ""}', 'must have "text" (not empty), "tokens" or "messages"'),
        ('{"tokens": []}', "tokens: must be a list that is not empty"),
        ('{"tokens": [1, true]}', "tokens[1]: is True; must be a token id"),
        ('{"messages": [{}]}', "messages[0].role: is None"),
    ],
)
def test_a_bad_line_is_named(tinkergate: Any, line: str, said: str) -> None:
    done = tinkergate("score", "-", stdin='{"tokens": [5]}\n' + line)
    assert done.code == 2
    assert f"-:2: {said}" in done.err


def test_a_file_that_is_not_there_is_named(tinkergate: Any, tmp_path: Path) -> None:
    done = tinkergate("score", tmp_path / "none.jsonl")
    assert done.code == 2
    assert "none.jsonl: No such file" in done.err
