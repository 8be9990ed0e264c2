"""`python -m tinkergate_kernels.aot`, and the page that it keeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl

from tinkergate_kernels.aot import __main__ as command
from tinkergate_kernels.aot import compiling, gates, report
from tinkergate_kernels.gpu.shipped import Bounds, Shipped

REPORT = Path(__file__).parents[3] / "kernels" / "REPORT.md"


@triton.jit
def copy(x, out, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


GOOD = Shipped(
    name="copy",
    kernel=copy,
    signature={"x": "*fp32", "out": "*fp32"},
    constants={"BLOCK": 512},
    divisible_by_16=("x", "out"),
    targets=("sm_80",),
    elements_per_loop=512,
)
BAD = replace(GOOD, name="copy, narrow", divisible_by_16=())


@pytest.fixture
def ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "shipped", lambda: [GOOD])


def run(*arguments: str) -> int:
    return command.main(arguments)


@pytest.mark.usefixtures("ships")
def test_what_keeps_the_rules_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "1 compiled, 0 rules broken" in capsys.readouterr().out


def test_each_broken_rule_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "shipped", lambda: [GOOD, BAD])
    assert run() == 1
    told = capsys.readouterr()
    assert "2 compiled, 2 rules broken" in told.out
    (load, store) = told.err.splitlines()
    assert re.fullmatch(
        r"copy, narrow on sm_80: load of 512 x 32 bits at source \d+:\d+ is 32 bits wide; "
        r"must be 128 bits",
        load,
    )
    assert "store of 512 x 32 bits" in store


@pytest.mark.usefixtures("ships")
def test_the_report_is_written_and_checked(tmp_path: Path) -> None:
    page = tmp_path / "REPORT.md"
    assert run("--report", str(page), "--check") == 1
    assert run("--report", str(page)) == 0
    assert run("--report", str(page), "--check") == 0
    text = page.read_text()
    assert "**No GPU ran any of this.**" in text
    assert "| copy | sm_80 |" in text
    assert f"Triton {triton.__version__}, its ptxas" in text
    page.write_text(text.replace("| copy |", "| something else |"))
    assert run("--report", str(page), "--check") == 1


@pytest.mark.usefixtures("ships")
def test_a_name_that_nothing_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--only", "nothing") == 1
    assert "no shipped configuration has 'nothing' in its name" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--check"], ["--report", "x", "--only", "copy"]])
def test_arguments_that_do_not_fit_are_refused(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2


def test_a_row_says_what_was_read() -> None:
    reading = gates.read(GOOD, "sm_80")
    page = report.table([reading], "some compiler")
    (row,) = [line for line in page.splitlines() if line.startswith("| copy | sm_80")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:7] == [str(reading.code.registers), "0, 0", "0.0", "2 of 2", "0"]
    assert cells[9].startswith("memory 100% (issue 0.")
    assert page == report.table([reading], "some compiler")
    unasked = replace(reading, configuration=replace(GOOD, bounds=Bounds(wide_loads=False)))
    assert "2 of 2, not asked" in report.table([unasked], "some compiler")


def test_the_committed_report_lists_what_is_shipped() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (sm_\d+|gfx\w+) \|", REPORT.read_text(), re.MULTILINE)
    assert rows == [
        (configuration.name, target)
        for configuration in compiling.shipped()
        for target in configuration.targets
    ]
