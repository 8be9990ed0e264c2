"""`tinkergate checkpoints download` as a process of its own: on a terminal, and interrupted."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cutting_proxy import CuttingProxy
from stored_checkpoint import sha256_of, stored_folder, write_checkpoint
from tests.conftest import GatewayProcess

MIB = 1 << 20
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def stored(
    micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, str]]:
    """A gateway, and the path of a checkpoint of some size."""
    root = tmp_path_factory.mktemp("download")
    path = write_checkpoint(root / "data", "some", {WEIGHTS: 30 * MIB})
    gateway = GatewayProcess(root, ["--model", str(micro_model_dir)], {})
    try:
        gateway.wait_until_listening()
        yield gateway, path
    finally:
        gateway.stop()


def command(address: str, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "tinkergate", "checkpoints", "download"]
    return [*start, *arguments, "--address", address]


def test_on_a_terminal_a_bar_goes_along(stored: tuple[GatewayProcess, str], tmp_path: Path) -> None:
    gateway, path = stored
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        command(gateway.address, path, "--to", str(tmp_path / "a")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        text=True,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # how Linux tells the end of a terminal
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert done.stdout is not None
    lines = done.stdout.read().splitlines()
    done.stdout.close()
    assert done.wait() == 0, shown
    text = shown.decode()
    # How often it is painted is a matter of time; that it is at the end is not.
    assert "30.0/30.0 MiB" in text
    assert [line.split("  ")[-2].rpartition("/")[2] for line in lines] == [
        "adapter_config.json",
        WEIGHTS,
        "tinkergate.json",
    ]


def test_an_interrupted_download_goes_on_when_it_is_started_again(
    stored: tuple[GatewayProcess, str], tmp_path: Path
) -> None:
    gateway, path = stored
    target = tmp_path / "a"
    with CuttingProxy(gateway.address) as line:
        started = command(line.address, path, "--to", str(target))
        line.cut_after = [12 * MIB]
        first = subprocess.Popen(
            started, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        line.on_cut = lambda: first.send_signal(signal.SIGINT)
        _, told = first.communicate()
        assert first.returncode == 130, told
        assert "interrupted" in told
        assert [each.name for each in target.iterdir()] == [".tinkergate.part"]
        before = len(line.received)
        again = subprocess.run(started, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert sum(line.received[before:]) < 24 * MIB
    stored_file = stored_folder(gateway.data_dir, path) / WEIGHTS
    assert sha256_of(target / WEIGHTS) == sha256_of(stored_file)
    # The small file, then the large one from where it was.
    assert "\n 10 %" not in again.stderr
