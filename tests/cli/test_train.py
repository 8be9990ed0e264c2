from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinkergate import v1
from tinkergate_client import connect

CONVERSATION = {
    "messages": [
        {"role": "user", "content": "What is the licence?"},
        {"role": "assistant", "content": "Apache it is."},
    ]
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [CONVERSATION, {"prompt": "You may", "completion": " copy it"}] * 3
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_training_lowers_the_loss_and_saves(tinkergate: Any, data: Path) -> None:
    done = tinkergate(
        *("train", data, "--json", "--steps", 12, "--batch-size", 3, "--rank", 4),
        *("--learning-rate", 0.01, "--sample", "What?", "--save", "mine"),
    )
    assert done.code == 0, done.err
    told = events(done.out)
    assert told[0]["event"] == "started"
    assert told[0]["examples"] == 6
    assert [event["when"] for event in told if event["event"] == "sampled"] == ["before", "after"]
    steps = [event for event in told if event["event"] == "step"]
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert steps[0]["learning_rate"] == 0.01
    assert steps[-1]["learning_rate"] == pytest.approx(0.01 / 12)  # linear, unless told otherwise
    assert steps[0]["grad_norm"] > 0
    assert told[-1] == {
        "event": "saved",
        "path": f"tinker://{told[0]['model_id']}/weights/mine",
    }


def test_training_goes_on_from_a_checkpoint(tinkergate: Any, data: Path) -> None:
    first = events(tinkergate("train", data, "--json", "--steps", 6, "--learning-rate", 0.01).out)
    path = first[-1]["path"]
    again = tinkergate("train", data, "--json", "--steps", 1, "--resume", path)
    assert again.code == 0, again.err
    resumed = [event for event in events(again.out) if event["event"] == "step"]
    begun = [event for event in first if event["event"] == "step"]
    assert resumed[0]["loss"] < begun[0]["loss"]


def test_plain_lines_for_people(tinkergate: Any, data: Path) -> None:
    done = tinkergate("train", data, "--epochs", 1, "--batch-size", 4, "--raw")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "6 examples" in lines[0]
    assert lines[1].startswith("step 1/2  loss ")
    assert lines[-1].startswith("saved tinker://")


def test_bad_lines_are_named_and_nothing_is_done(tinkergate: Any, data: Path) -> None:
    data.write_text(data.read_text() + "{}\n")
    done = tinkergate("train", data)
    assert done.code == 2
    assert f"{data}:7: must have" in done.err
    assert done.out == ""


def test_an_example_over_the_context_is_named(tinkergate: Any, data: Path) -> None:
    long = {"prompt": "a " * 2000, "completion": "b"}
    data.write_text(json.dumps(CONVERSATION) + "\n" + json.dumps(long) + "\n")
    done = tinkergate("train", data)
    assert done.code == 2
    assert f"{data}:2: has " in done.err
    assert "tokens; the model takes at most 512" in done.err


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "nope"], 1, "the gateway has no model 'nope'; its models: "),
        (["--resume", "tinker://x/weights/y"], 1, "checkpoint"),
        (["--resume", "tinker://x/weights/y", "--model", "m"], 2, "leave --model out"),
        (["--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_wrong_use_is_explained(
    tinkergate: Any, data: Path, flags: list[str], code: int, said: str
) -> None:
    done = tinkergate("train", data, *flags)
    assert done.code == code
    assert said in done.err


def test_without_a_gateway_the_exit_code_tells(tinkergate: Any, data: Path) -> None:
    done = tinkergate("train", data, address="127.0.0.1:1")
    assert done.code == 3
    assert "no gateway answered at 127.0.0.1:1" in done.err


def test_an_interrupt_ends_the_session(gateway_process: Any, data: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tinkergate", "train", str(data), "--json"),
            *("--steps", "100000", "--address", gateway_process.address),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        process.stdout.readline()  # a step
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "tinkergate: interrupted"
    with connect(gateway_process.address) as client:
        session_id = started["model_id"].split(":")[0]
        request = v1.GetSessionRequest(session_id=session_id)
        connection = client._connection
        session = connection.call(connection.sessions.GetSession, request).session
    assert session.finish_reason == v1.FinishReason.FINISH_REASON_INTERRUPTED
