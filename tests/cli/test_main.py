"""The command's exit codes, whatever the subcommand."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tinkergate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_command_ends_with_130():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with command("status", "--address", address) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors


def test_wrong_use_ends_with_2():
    for arguments in ((), ("no-such-command",), ("status", "--no-such-flag")):
        with command(*arguments) as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "Traceback" not in errors


def test_no_gateway_ends_with_3():
    for arguments in (("status",), ("checkpoints", "list")):
        with command(*arguments, "--address", "127.0.0.1:1") as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 3, errors
        assert errors.startswith("tinkergate: no gateway answered at 127.0.0.1:1")
        assert len(errors.splitlines()) == 1
