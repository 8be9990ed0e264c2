"""What the way through the gateway costs: gRPC client -> gateway -> a Tinker-dialect service,
against the official SDK calling that service directly, in one run.

    PYTHONPATH=tests/fixtures python tests/bench/dialect.py

Both send the same 128 datums of 1,024 tokens as one forward_backward and wait for the logprobs.
The service is a gateway with the embedded engine and a model so small that the way there and back
is most of the time. Calls alternate; bytes are counted between caller and service. Times are of
this machine; the ratio is the finding.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gateway_process import KEYS, Gateway, front_config
from micro_model import write_micro_model

from tinkergate_client import connect, supervised_datum

ROOT = Path(__file__).parents[2]
DATUMS, TOKENS = 128, 1024
RANK, SEED = 4, 1
SDK = "tinker-0.38.0"
PYTHON = ROOT / ".venv-interop" / SDK / "bin" / "python"


class Relay:
    """TCP on loopback, with every byte counted."""

    def __init__(self, upstream: str) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self.sent = self.received = 0
        self.address = ""
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            started.set()

        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(serve(), self._loop)
        started.wait()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(
            self._copy(reader, far_writer, "sent"), self._copy(far_reader, writer, "received")
        )

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: str
    ) -> None:
        try:
            while data := await reader.read(1 << 20):
                writer.write(data)
                await writer.drain()
                setattr(self, count, getattr(self, count) + len(data))
        except ConnectionError:
            pass
        finally:
            writer.close()

    def bytes(self) -> tuple[int, int]:
        """To the service and back, so far."""
        return self.sent, self.received


class Call(NamedTuple):
    """One call, client to result."""

    seconds: float
    loss: float
    sent: int
    received: int


class Sdk:
    """The official SDK in a process of its own."""

    def __init__(self, relay: Relay, base_model: str, rows: Sequence[Sequence[int]]) -> None:
        self._relay = relay
        self._process = subprocess.Popen(
            [
                ROOT / ".venv-interop" / SDK / "bin" / "python",
                Path(__file__).with_name("dialect_sdk.py"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(
            json.dumps(
                {
                    "url": f"http://{relay.address}",
                    "key": KEYS["tinker"],
                    "base_model": base_model,
                    "rank": RANK,
                    "seed": SEED,
                    "rows": rows,
                }
            )
        )
        if self._hear() != "ready":
            raise SystemExit("the SDK's process did not start")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def call(self) -> Call:
        """One forward_backward."""
        sent, received = self._relay.bytes()
        self._say("go")
        told = json.loads(self._hear())
        now = self._relay.bytes()
        return Call(told["seconds"], told["loss"], now[0] - sent, now[1] - received)

    def close(self) -> None:
        """End the process."""
        self._say("end")
        self._process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(3, 500, TOKENS + 1).tolist() for _ in range(DATUMS)]
    with tempfile.TemporaryDirectory(prefix="tinkergate-dialect-") as name:
        folder = Path(name)
        model = write_micro_model(
            folder / "thin",
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=2 * TOKENS,
        )
        service = Gateway(
            folder / "service",
            *("--model", str(model), "--http", "127.0.0.1:0"),
            environment={"TINKERGATE_API_KEY": KEYS["tinker"]},
        )
        to_sdk, to_gateway = Relay(service.http), Relay(service.http)
        config = folder / "front.toml"
        config.write_text(front_config("tinker", to_gateway.address))
        front = Gateway(
            folder / "front",
            *("--config", str(config)),
            environment={"UPSTREAM_KEY": KEYS["tinker"]},
        )
        try:
            sdk = Sdk(to_sdk, str(model), rows)
            with connect(front.grpc) as client, client.create_session() as session:
                ours = session.create_model(str(model), rank=RANK, seed=SEED)
                # As the SDK: datums are made before the clock runs.
                data = [supervised_datum(row, loss_mask=[0] + [1] * TOKENS) for row in rows]

                def call() -> Call:
                    sent, received = to_gateway.bytes()
                    begin = time.perf_counter()
                    loss = ours.forward_backward(data).result().loss
                    seconds = time.perf_counter() - begin
                    now = to_gateway.bytes()
                    return Call(seconds, loss, now[0] - sent, now[1] - received)

                pairs = [(sdk.call(), call()) for _ in range(args.rounds + 1)][1:]
                sdk.close()
        finally:
            front.stop()
            service.stop()
    report(pairs)


def report(pairs: Sequence[tuple[Call, Call]]) -> None:
    """Print medians and the ratio, with the least and the greatest."""
    assert all(sdk.loss == ours.loss for sdk, ours in pairs), "the two do not give the same loss"
    print(f"forward_backward of {DATUMS} datums x {TOKENS} tokens, client to result, loss equal")
    for title, calls in (
        (f"official SDK {SDK.rpartition('-')[2]}, directly", [sdk for sdk, _ in pairs]),
        ("gRPC through the gateway", [ours for _, ours in pairs]),
    ):
        seconds = statistics.median(call.seconds for call in calls)
        sent = statistics.median(call.sent for call in calls) / 1e6
        received = statistics.median(call.received for call in calls) / 1e6
        print(
            f"  {title:32} {seconds:7.3f} s  to the service {sent:6.2f} MB, back {received:5.2f} MB"
        )
    ratios = sorted(ours.seconds / sdk.seconds for sdk, ours in pairs)
    print(
        f"  the gateway takes {statistics.median(ratios):.2f} x the SDK's time "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} rounds)"
    )


if __name__ == "__main__":
    sys.exit(main())
