"""`tinkergate status` against a running gateway."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tinkergate import __version__
from tinkergate_client import connect, supervised_datum


def status(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinkergate", "status", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment or None,
    )


@pytest.fixture
def gateway(start_gateway):
    return start_gateway()


def test_an_idle_gateway_says_what_it_is(gateway, micro_model_dir):
    answer = status("--address", gateway.address, "--json")
    assert answer.returncode == 0, answer.stderr
    shown = json.loads(answer.stdout)
    assert shown["address"] == gateway.address
    assert shown["version"] == __version__
    assert [backend["kind"] for backend in shown["backends"]] == ["local"]
    (model,) = shown["base_models"]
    assert model["name"] == shown["default_model"]
    assert model["trainable"]
    assert model["sampleable"]
    assert model["max_context_length"] == 512
    assert shown["sessions"] == shown["models"] == []
    assert shown["operations"] == {}


def test_sessions_models_and_operations_are_shown(gateway):
    with (
        connect(gateway.address) as client,
        client.create_session(display_name="night run") as session,
    ):
        model = session.create_model(rank=4)
        datum = supervised_datum([5, 6, 7], [0, 1, 1])
        model.forward_backward([datum], "cross_entropy").result()
        model.optim_step().result()
        answer = status("--address", gateway.address, "--json")
        shown = json.loads(answer.stdout)
        (known,) = shown["sessions"]
        assert known["display_name"] == "night run"
        assert known["models"] == 1
        (training,) = shown["models"]
        assert training["model_id"] == model.model_id
        assert training["state"] == "ready"
        assert training["lora_rank"] == 4
        assert training["optimizer_steps"] == 1
        assert training["waiting_operations"] == 0
        assert shown["operations"] == {"succeeded": 3}

        text = status("--address", gateway.address).stdout
        assert text.startswith(f"Tinkergate {__version__} at {gateway.address}\n")
        assert "'night run'  1 models" in text
        assert f"{model.model_id}  " in text
        assert "rank 4  ready  1 steps" in text
        assert "Operations\n  3 succeeded" in text
    ended = json.loads(status("--address", gateway.address, "--json").stdout)
    assert ended["sessions"] == ended["models"] == []


def test_no_gateway_is_exit_code_3_in_a_line():
    answer = status("--address", "127.0.0.1:1")
    assert answer.returncode == 3
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert "no gateway answered at 127.0.0.1:1" in line


def test_a_wrong_key_is_exit_code_1_in_a_line(start_gateway):
    gateway = start_gateway(environment={"TINKERGATE_API_KEY": "right"})
    flags = ("--address", gateway.address)
    refused = status(*flags, TINKERGATE_API_KEY="wrong")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "API key" in line
    assert status(*flags, TINKERGATE_API_KEY="right").returncode == 0
