"""`tinkergate status` against a running gateway."""

from __future__ import annotations

import json
import subprocess
import sys

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


def test_a_gateway_says_what_it_is(gateway_process, micro_model_dir):
    answer = status("--address", gateway_process.address, "--json")
    assert answer.returncode == 0, answer.stderr
    shown = json.loads(answer.stdout)
    assert shown["address"] == gateway_process.address
    assert shown["version"] == __version__
    assert shown["backends"] == [{"name": "local", "kind": "local", "unavailable": ""}]
    (model,) = shown["base_models"]
    assert model == {
        "name": str(micro_model_dir),
        "backend": "local",
        "max_context_length": 512,
        "trainable": True,
        "sampleable": True,
        "aliases": ["micro"],
        "upstream_name": "",
    }
    assert shown["default_model"] == model["name"]


def test_sessions_models_and_operations_are_shown(gateway_process):
    flags = ("--address", gateway_process.address)
    before = json.loads(status(*flags, "--json").stdout)["operations"]
    with (
        connect(gateway_process.address) as client,
        client.create_session(display_name="night run") as session,
    ):
        model = session.create_model(rank=4)
        datum = supervised_datum([5, 6, 7], [0, 1, 1])
        model.forward_backward([datum], "cross_entropy").result()
        model.optim_step().result()
        shown = json.loads(status(*flags, "--json").stdout)
        (known,) = [one for one in shown["sessions"] if one["session_id"] == session.session_id]
        assert known["display_name"] == "night run"
        assert known["models"] == 1
        (training,) = [one for one in shown["models"] if one["model_id"] == model.model_id]
        assert training["state"] == "ready"
        assert training["lora_rank"] == 4
        assert training["optimizer_steps"] == 1
        assert training["waiting_operations"] == 0
        assert shown["operations"]["succeeded"] == before.get("succeeded", 0) + 3

        text = status(*flags).stdout
        assert text.startswith(f"Tinkergate {__version__} at {gateway_process.address}\n")
        assert f"{session.session_id}  'night run'  1 models" in text
        assert f"{model.model_id}  " in text
        assert "rank 4  ready  1 steps" in text
        assert f"{shown['operations']['succeeded']} succeeded" in text
        model_id = model.model_id
    ended = json.loads(status(*flags, "--json").stdout)
    assert model_id not in [one["model_id"] for one in ended["models"]]
    assert session.session_id not in [one["session_id"] for one in ended["sessions"]]


def test_no_gateway_is_exit_code_3_in_a_line():
    answer = status("--address", "127.0.0.1:1")
    assert answer.returncode == 3
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert "no gateway answered at 127.0.0.1:1" in line


def test_a_wrong_key_is_exit_code_1_in_a_line(start_gateway):
    gateway = start_gateway(engine=False, environment={"TINKERGATE_API_KEY": "right"})
    flags = ("--address", gateway.address)
    refused = status(*flags, TINKERGATE_API_KEY="wrong")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "API key" in line
    assert status(*flags, TINKERGATE_API_KEY="right").returncode == 0
