"""The programs of the package's README run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import tinkergate_kernels

README = Path(tinkergate_kernels.__file__).parent / "README.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_runs(program: str) -> None:
    torch.manual_seed(0)
    exec(compile(program, README.name, "exec"), {"__name__": "__main__"})


def test_every_public_function_has_an_example() -> None:
    code = "".join(PROGRAMS)
    names = [*tinkergate_kernels.__all__, "selective_logprob", "selective_scores", "evaluate"]
    functions = [name for name in names if name[0].islower()]
    assert [name for name in functions if f"{name}(" not in code] == []


def test_every_command_and_file_that_is_named_exists() -> None:
    text = README.read_text()
    for name in re.findall(r"-m tinkergate_kernels\.(\w+)", text):
        assert (README.parent / name / "__main__.py").is_file(), name
    for name in re.findall(r"^\| (`[^|]+`) \|", text.split("## Rooms")[1], re.MULTILINE):
        for part in re.findall(r"`([^`]+)`", name):
            assert (README.parent / part).exists(), part
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (README.parent / link).exists(), link
