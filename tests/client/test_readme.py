"""The Python programs of the READMEs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tinkergate_client import connect

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "clients/python/README.md"]
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_run(page: str, gateway_process: Any) -> None:
    programs = PROGRAM.findall((ROOT / page).read_text())
    assert programs
    for program in programs:
        assert "127.0.0.1:7700" in program
        here = program.replace("127.0.0.1:7700", gateway_process.address)
        exec(compile(here, page, "exec"), {"__name__": "__main__"})


def test_the_readme_program_learns(
    gateway_process: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = PROGRAM.findall((ROOT / "README.md").read_text())
    exec(program.replace("127.0.0.1:7700", gateway_process.address), {"__name__": "__main__"})
    losses = [
        float(loss) for loss in capsys.readouterr().out.splitlines()[0].strip("[]").split(",")
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    with connect(gateway_process.address) as client:
        newest = next(client.checkpoints.list())
        assert newest.path.endswith("/sampler_weights/paris")
