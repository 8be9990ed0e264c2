"""What the gateway itself costs: submit + wait against a bare grpc.aio echo, in one run.

    python tests/bench/hop.py

Both servers run in processes of their own on loopback and see the same traffic in turn, several
times over: a small forward_backward submitted and waited for (two calls) beside two echo calls of
the same sizes, and the fetching of a 2 MB result beside one echo call that answers 2 MB. Times
are of this machine; the ratios are the finding.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np

from tinkergate import tensors, v1

SERVER = Path(__file__).with_name("hop_server.py")
CHANNELS = 4
SMALL_TOKENS = 16
LARGE_TOKENS = 1 << 19
OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
]


class Figures(NamedTuple):
    """One measurement: requests a second, server CPU and latency of each."""

    rate: float
    cpu_us: float
    p50_ms: float


class Server:
    """A server process, its channels and its meter."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        ports = self.process.stdout.readline().split()
        if not ports:
            raise SystemExit(f"the {kind} server did not start")
        self.channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}", options=OPTIONS)
            for _ in range(CHANNELS)
        ]
        self._meter = grpc.aio.insecure_channel(f"127.0.0.1:{ports[-1]}", options=OPTIONS)

    async def cpu_seconds(self) -> float:
        """Processor time that the server has used."""
        packed = await self._meter.unary_unary("/bench.Meter/Cpu")(b"")
        return float(struct.unpack("<d", packed)[0])

    async def close(self) -> None:
        """Close the channels and end the process."""
        for channel in [*self.channels, self._meter]:
            await channel.close()
        self.process.communicate(timeout=30)


Call = Callable[[int], Awaitable[None]]


async def measure(server: Server, call: Call, requests: int, concurrency: int) -> Figures:
    """Run `requests` calls, `concurrency` at once."""
    latencies: list[float] = []
    numbers = iter(range(requests))

    async def worker() -> None:
        for number in numbers:
            begin = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - begin)

    cpu, begin = await server.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    elapsed, used = time.perf_counter() - begin, await server.cpu_seconds() - cpu
    return Figures(requests / elapsed, used / requests * 1e6, statistics.median(latencies) * 1e3)


def echo_call(server: Server, sizes: list[tuple[int, int]]) -> Call:
    """One echo call after another, of the given request and answer sizes."""
    calls = [channel.unary_unary("/bench.Echo/Call") for channel in server.channels]
    bodies = [struct.pack("<q", answer) + bytes(max(0, size - 8)) for size, answer in sizes]

    async def call(number: int) -> None:
        for body in bodies:
            await calls[number % CHANNELS](body)

    return call


def datum(tokens: int) -> v1.Datum:
    """A datum of that many tokens."""
    ids = np.zeros(tokens, np.int64)
    return v1.Datum(
        model_input=[v1.Chunk(encoded_text=v1.EncodedTextChunk(tokens=tensors.token_bytes(ids)))],
        loss_fn_inputs={"target_tokens": tensors.tensor_from_array(ids)},
    )


class Client:
    """Calls of the gateway by its generated stubs."""

    def __init__(self, server: Server, model_id: str) -> None:
        self._training = [v1.TrainingServiceStub(channel) for channel in server.channels]
        self._operations = [v1.OperationServiceStub(channel) for channel in server.channels]
        self._small = v1.ForwardBackwardRequest(
            model_id=model_id, data=[datum(SMALL_TOKENS)], loss_fn="cross_entropy"
        )
        self._large = v1.ForwardBackwardRequest(
            model_id=model_id, data=[datum(LARGE_TOKENS)], loss_fn="cross_entropy"
        )
        self.large_name = ""

    @classmethod
    async def open(cls, server: Server) -> Client:
        """A client with a model of its own."""
        sessions = v1.SessionServiceStub(server.channels[0])
        session = (await sessions.CreateSession(v1.CreateSessionRequest())).session
        operation = await v1.ModelServiceStub(server.channels[0]).CreateModel(
            v1.CreateModelRequest(session_id=session.session_id, base_model="idle")
        )
        client = cls(server, operation.model_id)
        await client._wait(0, operation.name)
        return client

    async def _wait(self, number: int, name: str) -> v1.Operation:
        request = v1.WaitOperationRequest(name=name)
        operation = (await self._operations[number % CHANNELS].WaitOperation(request)).operation
        if operation.state != v1.OperationState.OPERATION_STATE_SUCCEEDED:
            raise SystemExit(f"an operation failed: {operation}")
        return operation

    async def small(self, number: int) -> None:
        """Submit a small forward_backward and wait for it."""
        operation = await self._training[number % CHANNELS].ForwardBackward(self._small)
        await self._wait(number, operation.name)

    async def small_sizes(self) -> list[tuple[int, int]]:
        """Request and answer sizes of the two calls of `small`."""
        operation = await self._training[0].ForwardBackward(self._small)
        waited = await self._wait(0, operation.name)
        wait = v1.WaitOperationRequest(name=operation.name)
        return [
            (self._small.ByteSize(), operation.ByteSize()),
            (wait.ByteSize(), v1.WaitOperationResponse(operation=waited).ByteSize()),
        ]

    async def submit_large(self) -> tuple[int, int]:
        """Have a large result ready; answers the sizes of the call that fetches it."""
        operation = await self._training[0].ForwardBackward(self._large)
        waited = await self._wait(0, operation.name)
        self.large_name = operation.name
        wait = v1.WaitOperationRequest(name=operation.name)
        return wait.ByteSize(), v1.WaitOperationResponse(operation=waited).ByteSize()

    async def large(self, number: int) -> None:
        """Fetch the large result."""
        await self._wait(number, self.large_name)


def row(title: str, figures: Figures) -> str:
    return (
        f"  {title:<28}{figures.rate:>10.0f}/s{figures.cpu_us:>12.0f} us{figures.p50_ms:>10.2f} ms"
    )


def report(title: str, gateway: list[Figures], echo: list[Figures]) -> None:
    """Print the median round of each side, and the ratios of the rounds' pairs."""
    print(f"\n{title}\n  {'':<28}{'requests':>12}{'server CPU':>15}{'p50':>13}")
    for name, rounds in (("gateway", gateway), ("bare grpc.aio echo", echo)):
        medians = Figures(*(statistics.median(column) for column in zip(*rounds, strict=True)))
        print(row(name, medians))
    rates = [ours.rate / theirs.rate for ours, theirs in zip(gateway, echo, strict=True)]
    cpus = [ours.cpu_us / theirs.cpu_us for ours, theirs in zip(gateway, echo, strict=True)]
    print(
        f"  ratio: {statistics.median(rates):.2f} x the requests/s "
        f"({min(rates):.2f} to {max(rates):.2f}), {statistics.median(cpus):.2f} x the CPU "
        f"({min(cpus):.2f} to {max(cpus):.2f})"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=4000, help="small requests a round")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    gateway, echo = Server("gateway"), Server("echo")
    client = await Client.open(gateway)
    small = echo_call(echo, await client.small_sizes())
    large_sizes = await client.submit_large()
    large = echo_call(echo, [large_sizes])

    async def pairs(
        ours: Call, theirs: Call, requests: int, concurrency: int
    ) -> tuple[list[Figures], list[Figures]]:
        sides: tuple[list[Figures], list[Figures]] = ([], [])
        for _side, call, server in ((0, ours, gateway), (1, theirs, echo)):
            await measure(server, call, max(concurrency, requests // 10), concurrency)
        for _ in range(arguments.rounds):
            for side, call, server in ((0, ours, gateway), (1, theirs, echo)):
                sides[side].append(await measure(server, call, requests, concurrency))
        return sides

    report(
        f"submit + wait, {arguments.concurrency} at once (the echo: two calls of the same sizes)",
        *await pairs(client.small, small, arguments.requests, arguments.concurrency),
    )
    report(
        "submit + wait, one at a time",
        *await pairs(client.small, small, max(1, arguments.requests // 8), 1),
    )
    report(
        f"fetching a result of {large_sizes[1] / 1e6:.1f} MB, 4 at once (the echo: one call)",
        *await pairs(client.large, large, max(1, arguments.requests // 20), 4),
    )
    await gateway.close()
    await echo.close()


if __name__ == "__main__":
    asyncio.run(main())
