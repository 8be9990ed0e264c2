"""The commands of README.md work as they stand: they are run in order, on a gateway of the micro
model. What needs other programs or stays up is only checked to be there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"`(\{\"(?:messages|prompt)\".*?\})`", re.DOTALL)


def lines() -> list[str]:
    blocks = CONSOLE.findall((ROOT / "README.md").read_text())
    shown = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in shown)
    return [line.removeprefix("$ ") for line in shown]


def test_the_commands_run(tinkergate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data", tmp_path / "data")
    saved = ""
    ran = []
    for line in lines():
        line = line.replace("tinker://MODEL/weights/mine", saved)
        stdin = ""
        if piped := re.fullmatch(r"echo ('.*?') \| (.*)", line):
            (stdin,), line = shlex.split(piped[1]), piped[2]
        program, *arguments = shlex.split(line)
        if program != "tinkergate" or arguments[0] == "serve":
            continue
        done = tinkergate(*arguments, stdin=stdin)
        assert done.code == 0, (line, done.err)
        ran.append(arguments[0])
        if arguments[0] == "train":
            saved = done.out.splitlines()[-1].removeprefix("saved ")
            assert re.fullmatch(r"tinker://.+/weights/mine", saved)
    assert ran == ["train", "checkpoints", "sample", "score"]


def test_make_has_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    wanted = [line.split()[1] for line in lines() if line.startswith("make ")]
    assert wanted == ["run", "test"]
    for target in wanted:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_two_forms_of_an_example_are_what_train_reads(tmp_path: Path) -> None:
    from tinkergate.cli.conversations import read_examples

    forms = EXAMPLE.findall((ROOT / "README.md").read_text())
    path = tmp_path / "forms.jsonl"
    path.write_text("".join(json.dumps(json.loads(form)) + "\n" for form in forms))
    assert [example.is_pair for example in read_examples(path)] == [False, True]


def test_every_page_that_is_linked_is_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
