"""The two servers that `hop.py` compares, each in a process of its own.

`python hop_server.py echo` is a bare grpc.aio server whose only method answers what it is told to
answer; `python hop_server.py gateway` is the real gateway (door, core, store) over a backend that
does no work, so what is left is the gateway's own cost. Both print their port, answer
`/bench.Meter/Cpu` with the seconds of processor time used so far, and end with standard input.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np

from tinkergate import tensors, v1
from tinkergate.backends.base import (
    ModelFacts,
    ModelSpec,
    OnStart,
    SampleEvents,
    SamplerSpec,
    Submission,
    TrainingRequest,
    TrainingResult,
)
from tinkergate.core.gateway import Gateway
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import unsupported
from tinkergate.ingress.grpc.door import GrpcDoor
from tinkergate.ingress.grpc.settings import GrpcSettings
from tinkergate.store import Store

MESSAGE_BYTES = 64 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
]


class IdleBackend:
    """A backend that is done at once: each target token gets logprob 0."""

    name = "idle"

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def capabilities(self) -> v1.BackendCapabilities:
        loss = v1.LossCapability(
            name="cross_entropy", required_inputs=["target_tokens"], optional_inputs=["weights"]
        )
        return v1.BackendCapabilities(
            name=self.name,
            kind=v1.BackendKind.BACKEND_KIND_LOCAL,
            losses=[loss],
            optimizers=["adamw"],
            pipeline_depth=64,
        )

    async def models(self) -> Sequence[v1.SupportedModel]:
        return [
            v1.SupportedModel(
                name="idle",
                backend=self.name,
                max_context_length=1 << 22,
                trainable=True,
                sampleable=True,
                vocab_size=49152,
            )
        ]

    async def create_model(self, spec: ModelSpec) -> ModelFacts:
        return ModelFacts(v1.LoraConfig(rank=1, seed=0, alpha=1), "idle", "Idle", 49152, 1 << 22)

    async def unload_model(self, model_id: str) -> None: ...

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        on_start()
        result: asyncio.Future[TrainingResult] = asyncio.get_running_loop().create_future()
        if isinstance(request, v1.ForwardBackwardRequest):
            result.set_result(_output(request.data))
        else:
            result.set_result(v1.OptimStepResult())
        return Submission(result)

    async def create_sampler(self, spec: SamplerSpec) -> None: ...

    async def close_sampler(self, sampler_id: str) -> None: ...

    async def sample(self, request: v1.SampleRequest, events: SampleEvents) -> v1.SampleResponse:
        raise unsupported("sampling", self.name)

    async def score(self, request: v1.ScoreRequest) -> v1.ScoreResponse:
        raise unsupported("scoring", self.name)

    async def checkpoints(self) -> Sequence[v1.Checkpoint]:
        return []

    async def delete_checkpoint(self, path: str) -> None: ...

    async def import_checkpoint(self, checkpoint: v1.Checkpoint, files: Mapping[str, Path]) -> int:
        raise unsupported("imports", self.name)


def _output(data: Sequence[v1.Datum]) -> v1.ForwardBackwardOutput:
    logprobs = [
        np.zeros(tensors.array_from_tensor(datum.loss_fn_inputs["target_tokens"]).shape, np.float32)
        for datum in data
    ]
    record = v1.ArrayRecord(
        fields={"logprobs": tensors.batched_from_arrays(logprobs)}, num_datums=len(data)
    )
    return v1.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=[record], metrics={"loss:sum": 0.0}
    )


def _meter() -> grpc.GenericRpcHandler:
    async def cpu(_: bytes, __: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return struct.pack("<d", time.process_time())

    return grpc.method_handlers_generic_handler(
        "bench.Meter", {"Cpu": grpc.unary_unary_rpc_method_handler(cpu)}
    )


def _echo() -> grpc.GenericRpcHandler:
    answers: dict[int, bytes] = {}

    async def call(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        # The first 8 bytes say how many to answer.
        (size,) = struct.unpack_from("<q", request)
        return answers.setdefault(size, bytes(size))

    return grpc.method_handlers_generic_handler(
        "bench.Echo", {"Call": grpc.unary_unary_rpc_method_handler(call)}
    )


async def _until_input_ends() -> None:
    await asyncio.to_thread(sys.stdin.read)


async def serve_echo() -> None:
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers([_meter(), _echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await _until_input_ends()
    await server.stop(0)


async def serve_gateway() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/gateway.db")
        gateway = Gateway([IdleBackend()], store, CoreSettings(), "idle")
        await gateway.start()
        door = GrpcDoor(GrpcSettings(listen="127.0.0.1:0"), max_message_bytes=MESSAGE_BYTES)
        address = await door.start(gateway)
        meter = grpc.aio.server(options=_OPTIONS)
        meter.add_generic_rpc_handlers([_meter()])
        meter_port = meter.add_insecure_port("127.0.0.1:0")
        await meter.start()
        print(address.port, meter_port, flush=True)
        await _until_input_ends()
        await meter.stop(0)
        await door.stop(0)
        await gateway.close(0)


if __name__ == "__main__":
    asyncio.run(serve_echo() if sys.argv[1] == "echo" else serve_gateway())
