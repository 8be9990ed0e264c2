"""What tests of every room share: model folders, and gateways as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import compatibility
import pytest
from certificates import Certificates, write_certificates
from hypothesis import HealthCheck, settings
from micro_model import write_micro_model

# No test fails for being slow, and one that passed passes again.
settings.register_profile(
    "tinkergate", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tinkergate")


def pytest_addoption(parser: pytest.Parser) -> None:
    compatibility.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    compatibility.configure(config)
    # A shell that runs tests in the background has them, and all that they start, ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    compatibility.check_marks(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    compatibility.finish(session)


@pytest.fixture(scope="session")
def micro_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model's folder."""
    pytest.importorskip("torch")
    return write_micro_model(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="session")
def default_model_dir() -> Path:
    """The default model's folder: real weights, converted into the cache once per machine. Skips
    where its package is not installed, unless TINKERGATE_REQUIRE_MODEL is set."""
    pytest.importorskip("torch")
    from tinkergate.engine.model_files import DEFAULT_MODEL, ModelFiles
    from tinkergate.errors import GatewayError

    try:
        return ModelFiles().path(DEFAULT_MODEL)
    except GatewayError as error:
        if os.environ.get("TINKERGATE_REQUIRE_MODEL"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """PEM files to serve and call with."""
    return write_certificates(tmp_path_factory.mktemp("certificates"))


class GatewayProcess:
    """`tinkergate serve` as a process of its own, on a free port of loopback."""

    def __init__(self, folder: Path, flags: list[str], environment: Mapping[str, str]) -> None:
        self.data_dir = folder / "data"
        self._log_path = folder / "log.jsonl"
        self.address = ""
        """HOST:PORT, once `wait_until_listening` has returned."""
        self.http_address = ""
        """HOST:PORT of the HTTP door, if it has one."""
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tinkergate", "serve"),
                    *("--grpc", "127.0.0.1:0", "--data-dir", str(self.data_dir)),
                    *("--log-format", "json", *flags),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_plain_environment(), **environment},
                text=True,
            )

    def wait_until_listening(self) -> None:
        """Return once clients can connect. Fails with the log if the gateway does not start."""
        assert self.process.stdout is not None
        first, *doors = self.process.stdout.readline().split() or [""]
        assert first == "listening", f"the gateway did not start:\n{self.log()}"
        addresses = dict(door.split("=", 1) for door in doors)
        self.address = addresses["grpc"]
        self.http_address = addresses.get("http", "")

    def log(self) -> str:
        """What was written to stderr so far."""
        return self._log_path.read_text()

    def events(self) -> list[dict[str, object]]:
        """The lines of the log so far."""
        return [json.loads(line) for line in self.log().splitlines()]

    def wait_for_event(self, event: str) -> None:
        """Return once the log has the event."""
        while event not in [line["event"] for line in self.events()]:
            assert self.process.poll() is None, f"the gateway ended:\n{self.log()}"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it as an operator would, if it still runs. Answers the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end. Answers the exit code, negative for a signal that killed it."""
        try:
            return self.process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the gateway did not end:\n{self.log()}") from None
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()


def _plain_environment() -> dict[str, str]:
    """This process's environment without what would configure the gateway, but with its cache."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TINKERGATE_", "TINKER_", "MINT_", "BASETEN_"))
        or name == "TINKERGATE_CACHE_DIR"
    }


class StartGateway(Protocol):
    """The type of `start_gateway`."""

    def __call__(
        self,
        *flags: str,
        engine: bool = True,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        wait: bool = True,
    ) -> GatewayProcess: ...


@pytest.fixture
def start_gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways with flags of the test's own: with the micro model, or without the engine,
    which saves the seconds that loading PyTorch takes. `folder` is for the data and the log; by
    default each gateway gets one of its own. All are stopped at the end."""
    started: list[GatewayProcess] = []

    def start(
        *flags: str,
        engine: bool = True,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        wait: bool = True,
    ) -> GatewayProcess:
        if folder is None:
            folder = tmp_path / f"gateway-{len(started)}"
        folder.mkdir(exist_ok=True)
        settings = dict(environment or {})
        if engine:
            flags = ("--model", str(request.getfixturevalue("micro_model_dir")), *flags)
        else:
            settings["TINKERGATE_ENGINE_ENABLED"] = "false"
        gateway = GatewayProcess(folder, list(flags), settings)
        started.append(gateway)
        if wait:
            gateway.wait_until_listening()
        return gateway

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="session")
def gateway_process(
    micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One gateway with the micro model for all tests that only need to talk to one."""
    gateway = GatewayProcess(
        tmp_path_factory.mktemp("gateway"), ["--model", str(micro_model_dir)], {}
    )
    try:
        gateway.wait_until_listening()
        yield gateway
    finally:
        code = gateway.stop()
    assert code == 0, gateway.log()
