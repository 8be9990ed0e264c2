"""`python -m tinkergate_kernels.selftest` on this machine, and that it would tell of an error."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import tinkergate_kernels
from tinkergate_kernels.selftest import __main__ as command
from tinkergate_kernels.selftest import linear, losses, selective
from tinkergate_kernels.selftest.checks import Case, Measure

CPU = torch.device("cpu")


def counts(out: str) -> tuple[int, int]:
    told = re.search(r"^(\d+) passed, (\d+) failed$", out, re.MULTILINE)
    assert told is not None
    return int(told[1]), int(told[2])


@pytest.mark.parametrize("room", ["linear", "selective", "losses"])
def test_the_public_functions_are_right_here(room: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main(["--device", "cpu", "--only", room])
    out = capsys.readouterr().out
    assert status == 0, "\n".join(line for line in out.splitlines() if line.startswith("FAIL"))
    passed, failed = counts(out)
    assert passed > 20
    assert failed == 0
    assert len(re.findall(r"^ok   ", out, re.MULTILINE)) == passed


def test_every_public_function_is_checked() -> None:
    functions = {
        name
        for name in tinkergate_kernels.__all__
        if inspect.isfunction(getattr(tinkergate_kernels, name))
    }
    assert "linear_logprob" in functions
    source = "".join(inspect.getsource(room) for room in (linear, selective, losses))
    assert [name for name in sorted(functions) if f"{name}(" not in source] == []


def test_an_error_of_a_function_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = linear.linear_logprob

    def wrong(*arguments: object, **options: object) -> Tensor:
        return right(*arguments, **options) - 5e-5  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "linear_logprob", wrong)
    assert command.main(["--device", "cpu", "--only", "linear fp32, plain"]) == 1
    out = capsys.readouterr().out
    assert "FAIL linear fp32, plain: logprob: 5." in out
    assert counts(out)[1] == 1


def test_what_fails_or_breaks_is_counted_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks(device: torch.device) -> Iterator[Measure]:
        yield Measure("first", 0.0, 0.0)
        raise RuntimeError(f"no kernel for {device}")

    cases = [
        Case("broken", breaks),
        Case(
            "wrong", lambda _: [Measure("far off", 2.0, 1.0), Measure("no number", math.nan, 1.0)]
        ),
        Case("right", lambda _: [Measure("near", 0.5, 1.0)]),
    ]
    assert command.run(cases, CPU) == 1
    out = capsys.readouterr().out
    assert "FAIL broken: RuntimeError: no kernel for cpu" in out
    assert "FAIL wrong: far off: 2.0e+00, at most 1.0e+00" in out
    assert "FAIL wrong: no number: nan" in out
    assert counts(out) == (2, 3)
    assert command.run(cases[2:], CPU) == 0


def test_a_name_that_nothing_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--device", "cpu", "--only", "nothing"]) == 1
    assert "no case has 'nothing' in its name" in capsys.readouterr().err
