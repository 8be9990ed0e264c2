"""The command as its users run it, but in this process: importing it anew takes seconds."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tinkergate.cli.main import main


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Tinkergate = Callable[..., Outcome]


@pytest.fixture
def tinkergate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: Any
) -> Tinkergate:
    """Runs `tinkergate` with arguments; commands find the shared gateway by TINKERGATE_ADDRESS."""

    def run(*arguments: object, stdin: str = "", address: str | None = None) -> Outcome:
        if address is None:
            address = request.getfixturevalue("gateway_process").address
        monkeypatch.setenv("TINKERGATE_ADDRESS", address)
        monkeypatch.setattr(sys, "argv", ["tinkergate", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        out, err = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else int(bool(code)), out, err)

    return run
