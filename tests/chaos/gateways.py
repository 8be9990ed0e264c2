"""The two gateways of the chaos run: the one that has an engine, and the one in front of it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

KEYS = {"tinker": "tml-chaos", "mint": "sk-mint-chaos"}


class Gateway:
    """`tinkergate serve` as a process."""

    def __init__(
        self, folder: Path, *flags: str, environment: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = folder / "data"
        self._flags = flags
        self._environment = environment or {}
        self._log = folder / "log.jsonl"
        self.grpc = self.http = ""
        self.start()

    def start(self) -> None:
        """Start it, on free ports, and wait until clients can connect."""
        clean = {n: v for n, v in os.environ.items() if not n.startswith("TINKERGATE_")}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tinkergate", "serve", "--grpc", "127.0.0.1:0"),
                    *("--data-dir", str(self.data_dir), "--log-format", "json", *self._flags),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean | self._environment,
                text=True,
            )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words or words[0] != "listening":
            raise SystemExit(f"a gateway did not start:\n{self._log.read_text()[-4000:]}")
        places = dict(word.split("=", 1) for word in words[1:])
        self.grpc, self.http = places["grpc"], places.get("http", "")

    def kill(self) -> None:
        """End it as a failing machine would."""
        self.process.kill()
        self._ended()

    def stop(self) -> None:
        """End it as an operator would."""
        self.process.terminate()
        self._ended()

    def _ended(self) -> None:
        self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def freeze(self) -> None:
        """Have it stand still."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        self.process.send_signal(signal.SIGCONT)

    def weights(self, name: str) -> str | None:
        """The SHA-256 of a training checkpoint's weights; None if there is none of that name."""
        for file in self.data_dir.glob(f"checkpoints/*/weights/{name}/adapter_model.safetensors"):
            return hashlib.sha256(file.read_bytes()).hexdigest()
        return None


def front_config(dialect: str, upstream: str) -> str:
    """The TOML of a gateway whose one backend is `upstream` (HOST:PORT)."""
    return f"""
default_backend = "upstream"

[engine]
enabled = false

[backends.upstream]
kind = "{dialect}"
base_url = "http://{upstream}"
api_key_env = "CHAOS_KEY"
"""
