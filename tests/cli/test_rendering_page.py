"""What docs/rendering.md shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "rendering.md").read_text()


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_program_learns(gateway_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKERGATE_ADDRESS", gateway_process.address)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block("python"), "rendering.md", "exec"), {})
    losses, answer = out.getvalue().rstrip("\n").split("\n", 1)
    first, *_, last = map(float, losses.strip("[]").split(","))
    assert last < first
    assert answer.endswith(("True", "False"))


@pytest.mark.slow
def test_the_command_shows_what_the_page_shows(
    tinkergate: Any,
    start_gateway: Any,
    default_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the default model, as somebody who follows the page has it."""
    address = start_gateway("--model", "default").address
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text(block("json"))
    command, shown = block("console").removeprefix("$ tinkergate ").split("\n", 1)
    done = tinkergate(*command.split(), "--model", "default", address=address)
    assert done.code == 0, done.err
    assert done.out == shown
