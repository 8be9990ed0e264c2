from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tinkergate.cli import training_report
from tinkergate.cli.training_report import Report, RunFacts, StepFacts, report, sparkline

RUN = RunFacts("s:train:0", "micro", examples=3, tokens=50, learned_tokens=20, steps=2)
STEPS = [
    StepFacts(
        step=number,
        steps=2,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=2.5,
        tokens=25,
        tokens_per_second=100.4,
    )
    for number, loss in ((1, 4.0), (2, 1.25))
]


def tell(told: Report) -> None:
    with told:
        told.started(RUN)
        told.sampled("before", "Hello [bold]?", "x")
        for step in STEPS:
            told.stepped(step)
        told.sampled("after", "Hello [bold]?", "y")
        told.finished(STEPS[0], STEPS[-1], 0.5)
        told.saved("tinker://s:train:0/weights/final")


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    tell(report(as_json=True))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == [
        *("started", "sampled", "step", "step", "sampled", "finished", "saved")
    ]
    assert events[2]["loss"] == 4.0
    assert events[5] == {
        "event": "finished",
        "first_loss": 4.0,
        "last_loss": 1.25,
        "seconds": 0.5,
    }


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    tell(report(as_json=False))
    out = capsys.readouterr().out
    assert "step 1/2  loss 4.0000  100 tokens/s\nstep 2/2  loss 1.2500" in out
    assert "before  Hello [bold]?\n     -> x" in out
    assert "\x1b" not in out
    assert out.endswith("saved tinker://s:train:0/weights/final\n")


def test_on_a_terminal_the_loss_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **_: terminal)
    tell(training_report._LiveReport())
    shown = screen.getvalue()
    assert "step 2/2  loss 1.250  100 tokens/s  █▁" in shown
    assert "Hello [bold]?" in shown


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, ""),
        ([3.0], 5, "▁"),
        ([1.0, 1.0], 5, "▁▁"),
        ([0.0, 7.0, 3.0], 5, "▁█▄"),
        ([4.0, 2.0, 0.0, 0.0], 2, "█▁"),
    ],
)
def test_sparkline(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected
