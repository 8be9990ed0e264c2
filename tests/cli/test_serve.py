"""`tinkergate serve` as operators meet it: flags, messages, exit codes, signals."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tinkergate import __version__
from tinkergate.v1 import CapabilitiesServiceStub, GetCapabilitiesRequest

HEAVY = ("torch", "transformers", "grpc", "google.protobuf", "sqlalchemy", "numpy", "pydantic")


def run(*arguments: str, environment: dict[str, str] | None = None):
    return subprocess.run(
        [sys.executable, "-m", "tinkergate", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def refusal(gateway, code: int) -> str:
    """The one line by which a gateway that cannot start says so, after what it may have logged."""
    assert gateway.wait() == code
    *logged, line = gateway.log().splitlines()
    assert all(json.loads(earlier)["level"] == "info" for earlier in logged)
    assert line.startswith("tinkergate: ")
    return line.removeprefix("tinkergate: ")


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from tinkergate.cli.main import app; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "[]\n"


def test_version_and_help():
    assert run("--version").stdout == f"tinkergate {__version__}\n"
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("serve", "train", "sample", "score", "models", "checkpoints", "status"):
        assert f"\n  {command} " in shown.stdout


def test_a_flag_that_does_not_exist_is_a_usage_error():
    answer = run("serve", "--no-such-flag")
    assert answer.returncode == 2
    assert "--no-such-flag" in answer.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_announces_its_address_and_ends_with_0_on_a_signal(start_gateway, number):
    gateway = start_gateway(engine=False)
    assert gateway.address.startswith("127.0.0.1:")
    assert not gateway.address.endswith(":0")
    with grpc.insecure_channel(gateway.address) as channel:
        capabilities = CapabilitiesServiceStub(channel).GetCapabilities(GetCapabilitiesRequest())
    assert capabilities.gateway_version == __version__
    gateway.signal(number)
    assert gateway.wait() == 0
    events = [line["event"] for line in gateway.events() if line["logger"] == "tinkergate.server"]
    assert events == ["starting", "listening", "draining", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_it_listens_ends_it_at_once(start_gateway, number):
    gateway = start_gateway(wait=False)
    gateway.wait_for_event("starting")
    gateway.signal(number)
    assert gateway.wait() == -number
    assert start_gateway("--data-dir", str(gateway.data_dir), engine=False).stop() == 0


def test_a_port_that_is_taken_is_told_in_a_line(start_gateway):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = start_gateway("--grpc", f"127.0.0.1:{port}", wait=False, engine=False)
        assert refusal(gateway, 1) == (
            f"port {port} is in use; another gateway? try --grpc 127.0.0.1:0"
        )


def test_a_data_folder_in_use_is_told_in_a_line(start_gateway):
    first = start_gateway(engine=False)
    second = start_gateway("--data-dir", str(first.data_dir), wait=False, engine=False)
    assert f"process {first.process.pid}" in refusal(second, 1)
    assert first.stop() == 0
    third = start_gateway("--data-dir", str(first.data_dir), engine=False)
    assert third.stop() == 0


def test_a_data_folder_that_cannot_be_made_is_told_in_a_line(start_gateway, tmp_path):
    (tmp_path / "file").write_text("")
    gateway = start_gateway("--data-dir", str(tmp_path / "file" / "data"), wait=False, engine=False)
    assert refusal(gateway, 1) == f"{tmp_path / 'file' / 'data'}: Not a directory"


def test_a_store_that_cannot_be_opened_is_told_in_a_line(start_gateway):
    environment = {"TINKERGATE_STORE_URL": "nosuchdb://user:pass@host/db"}
    gateway = start_gateway(engine=False, wait=False, environment=environment)
    line = refusal(gateway, 1)
    assert line.startswith("the store cannot be opened: ")
    assert "pass" not in line


def test_a_model_that_cannot_be_found_is_told_in_a_line(start_gateway, tmp_path):
    gateway = start_gateway("--model", str(tmp_path / "nothing"), wait=False)
    assert str(tmp_path / "nothing") in refusal(gateway, 1)


def test_an_open_address_is_refused_with_the_ways_out(start_gateway):
    gateway = start_gateway("--grpc", "0.0.0.0:0", wait=False, engine=False)
    line = refusal(gateway, 1)
    for way in ("--tls-cert", "TINKERGATE_API_KEY", "--tls-client-ca", "--allow-insecure-bind"):
        assert way in line


def test_a_bad_configuration_is_a_usage_error_in_a_line(start_gateway, tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text("[grpc]\nlisten_on = '127.0.0.1:0'\n")
    gateway = start_gateway("--config", str(file), wait=False, engine=False)
    assert refusal(gateway, 2).startswith(f"{file}: there is no setting 'grpc.listen_on'")


def test_flags_reach_the_gateway(start_gateway, tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text("[limits]\nmax_wait = 7\n[log]\nlevel = 'debug'\n")
    gateway = start_gateway(
        "--config", str(file), "--log-level", "error", "--no-reflection", engine=False
    )
    with grpc.insecure_channel(gateway.address) as channel:
        stub = CapabilitiesServiceStub(channel)
        limits = stub.GetCapabilities(GetCapabilitiesRequest()).limits
        assert limits.max_wait.seconds == 7
        list_services = channel.unary_unary(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.RpcError) as caught:
            list_services(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert gateway.log() == ""


def test_the_key_of_the_environment_is_asked_for(start_gateway):
    gateway = start_gateway(engine=False, environment={"TINKERGATE_API_KEY": "right"})
    with grpc.insecure_channel(gateway.address) as channel:
        stub = CapabilitiesServiceStub(channel)
        for metadata in ((), [("authorization", "Bearer wrong")]):
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetCapabilities(GetCapabilitiesRequest(), metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        right = [("authorization", "Bearer right")]
        assert stub.GetCapabilities(GetCapabilitiesRequest(), metadata=right).gateway_version
    assert "right" not in gateway.log()


def test_it_runs_as_a_module_and_as_a_command():
    command = Path(sys.executable).with_name("tinkergate")
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == run("--version").stdout


def test_human_logs_are_for_people(start_gateway):
    gateway = start_gateway("--log-format", "human", engine=False)
    assert gateway.stop() == 0
    lines = gateway.log().splitlines()
    assert lines[0].endswith(f"data_dir={gateway.data_dir}")
    assert lines[1].endswith(f"info    listening grpc={gateway.address}")


def test_beyond_loopback_with_tls_and_a_key(start_gateway, certificates):
    key = {"TINKERGATE_API_KEY": "right"}
    gateway = start_gateway(
        *("--grpc", "0.0.0.0:0", "--tls-cert", str(certificates.cert)),
        *("--tls-key", str(certificates.key), "--tls-client-ca", str(certificates.ca)),
        engine=False,
        environment=key,
    )
    address = f"127.0.0.1:{gateway.address.rpartition(':')[2]}"
    trust = ("status", "--address", address, "--tls-ca", str(certificates.ca))
    ours = ("--tls-cert", str(certificates.client_cert), "--tls-key", str(certificates.client_key))
    answer = run(*trust, *ours, environment=key)
    assert answer.returncode == 0, answer.stderr
    assert run(*trust, *ours, environment={"TINKERGATE_API_KEY": "wrong"}).returncode == 1
    assert run(*trust, environment=key).returncode == 3
    # Even failed handshakes leave a log that machines can read.
    assert [line["code"] for line in gateway.events() if line["event"] == "call"].count("OK") >= 1
