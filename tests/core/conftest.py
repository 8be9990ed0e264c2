"""A backend that really keeps the books of what it is told, and a gateway on it.

A model of the accounting backend is two numbers: forward_backward adds the sum of its weights to
`gradient`, optim_step adds learning_rate * gradient to `value`. So whatever runs twice, not at all
or out of order shows in the numbers; `journal` holds what was executed, in order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkergate.backends.base import (
    LoadedState,
    ModelFacts,
    ModelSpec,
    OnStart,
    SampleEvents,
    SamplerReady,
    SamplerSpec,
    SavedCheckpoint,
    Submission,
    TrainingRequest,
    TrainingResult,
)
from tinkergate.core.clock import Clock
from tinkergate.core.gateway import Gateway
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import cancelled
from tinkergate.store import Store
from tinkergate.tensors import (
    array_from_tensor,
    arrays_from_batched,
    batched_from_arrays,
    tensor_from_array,
    token_bytes,
    tokens_from_bytes,
)
from tinkergate.v1 import (
    ArrayRecord,
    BackendCapabilities,
    BackendKind,
    Checkpoint,
    CheckpointFile,
    Chunk,
    CreateModelRequest,
    CreateSessionRequest,
    Datum,
    EncodedTextChunk,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ForwardRequest,
    LoadStateRequest,
    LoraConfig,
    LossCapability,
    Operation,
    OptimStepRequest,
    OptimStepResult,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    ScoreRequest,
    ScoreResponse,
    SupportedModel,
    WaitOperationRequest,
)

BASE = "accounts/small"
VOCAB = 100
CONTEXT = 32


@dataclasses.dataclass
class Account:
    """A model's numbers."""

    value: float = 0.0
    gradient: float = 0.0
    steps: int = 0


@dataclasses.dataclass
class _Job:
    request: TrainingRequest
    on_start: OnStart
    future: asyncio.Future[TrainingResult]
    started: bool = False


class AccountingBackend:
    """Works off each model's requests one by one, while its gate is open."""

    def __init__(self, name: str = "books", *, pipeline_depth: int = 4, folder: Path) -> None:
        self.name = name
        self.depth = pipeline_depth
        self.folder = folder
        self.gate = asyncio.Event()
        self.gate.set()
        self.create_gate = asyncio.Event()
        self.create_gate.set()
        self.sample_gate = asyncio.Event()
        self.sample_gate.set()
        self.journal: list[tuple[str, str, int | None]] = []
        self.submitted: list[TrainingRequest] = []
        self.most_in_flight = 0
        self.accounts: dict[str, Account] = {}
        self.samplers: dict[str, float] = {}
        self.saved: dict[str, Account] = {}
        self.fail_submit: dict[int, Exception] = {}
        self.fail_run: dict[int, Exception] = {}
        self.fail_create: Exception | None = None
        self.fail_sample: Exception | None = None
        self.samples_begun = 0
        self.samples_stopped = 0
        self.events: list[str] = []
        self.known: Sequence[Checkpoint] = ()
        self.files: dict[str, bytes] = {}
        self.read_gate = asyncio.Event()
        self.read_gate.set()
        self._jobs: defaultdict[str, asyncio.Queue[_Job]] = defaultdict(asyncio.Queue)
        self._open_jobs: defaultdict[str, int] = defaultdict(int)
        self._workers: dict[str, asyncio.Task[None]] = {}

    async def start(self, known: Sequence[Checkpoint] = ()) -> None:
        self.known = known
        self.events.append("start")

    async def close(self) -> None:
        self.events.append("close")
        for worker in self._workers.values():
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)

    def capabilities(self) -> BackendCapabilities:
        return BackendCapabilities(
            name=self.name,
            kind=BackendKind.BACKEND_KIND_LOCAL,
            losses=[
                LossCapability(
                    name="cross_entropy",
                    required_inputs=["target_tokens"],
                    optional_inputs=["weights"],
                ),
                LossCapability(
                    name="ppo",
                    required_inputs=["target_tokens", "logprobs", "advantages"],
                    config_keys=["clip_low_threshold", "clip_high_threshold"],
                ),
            ],
            optimizers=["adamw"],
            max_lora_rank=64,
            pipeline_depth=self.depth,
            external_weights=True,
            checkpoint_files=True,
        )

    async def models(self) -> Sequence[SupportedModel]:
        return [
            SupportedModel(
                name=BASE,
                backend=self.name,
                max_context_length=CONTEXT,
                trainable=True,
                sampleable=True,
                tokenizer_id="accounts/tokenizer",
                vocab_size=VOCAB,
                aliases=["small"],
            ),
            SupportedModel(name="accounts/frozen", backend=self.name, max_context_length=CONTEXT),
        ]

    async def create_model(self, spec: ModelSpec) -> ModelFacts:
        await self.create_gate.wait()
        if self.fail_create is not None:
            raise self.fail_create
        account = Account()
        if spec.checkpoint is not None:
            account = _loaded(self.saved[spec.checkpoint.path], spec.checkpoint.with_optimizer)
        self.accounts[spec.model_id] = account
        self._workers[spec.model_id] = asyncio.create_task(self._work(spec.model_id))
        rank = spec.lora_config.rank if spec.lora_config.HasField("rank") else 32
        return ModelFacts(
            lora_config=LoraConfig(rank=rank, seed=1, alpha=32.0),
            tokenizer_id="accounts/tokenizer",
            arch="Accounts",
            vocab_size=VOCAB,
            max_context_length=CONTEXT,
            optimizer_steps=account.steps,
        )

    async def unload_model(self, model_id: str) -> None:
        await self._jobs[model_id].join()
        if (worker := self._workers.pop(model_id, None)) is not None:
            worker.cancel()
        self.accounts.pop(model_id, None)
        self.events.append(f"unload {model_id}")

    async def submit(self, request: TrainingRequest, on_start: OnStart) -> Submission:
        await asyncio.sleep(0)
        seq_id = request.seq_id if request.HasField("seq_id") else 0
        if (error := self.fail_submit.get(seq_id)) is not None:
            raise error
        self.submitted.append(request)
        model_id = request.model_id
        self._open_jobs[model_id] += 1
        self.most_in_flight = max(self.most_in_flight, self._open_jobs[model_id])
        job = _Job(request, on_start, asyncio.get_running_loop().create_future())
        self._jobs[model_id].put_nowait(job)

        def cancel() -> bool:
            if job.started:
                return False
            if not job.future.done():
                job.future.set_exception(cancelled())
                self._open_jobs[model_id] -= 1
            return True

        return Submission(job.future, cancel)

    async def _work(self, model_id: str) -> None:
        jobs = self._jobs[model_id]
        while True:
            job = await jobs.get()
            try:
                await self.gate.wait()
                if not job.future.done():
                    job.started = True
                    job.on_start()
                    self._run(job)
                    self._open_jobs[model_id] -= 1
            finally:
                jobs.task_done()

    def _run(self, job: _Job) -> None:
        request = job.request
        seq_id = request.seq_id if request.HasField("seq_id") else None
        self.journal.append((request.model_id, type(request).__name__, seq_id))
        if (error := self.fail_run.get(seq_id or 0)) is not None:
            job.future.set_exception(error)
            return
        job.future.set_result(self._result(request))

    def _result(self, request: TrainingRequest) -> TrainingResult:
        account = self.accounts[request.model_id]
        if isinstance(request, ForwardRequest | ForwardBackwardRequest):
            weights = [array_from_tensor(datum.loss_fn_inputs["weights"]) for datum in request.data]
            loss = float(sum(w.sum() for w in weights))
            if isinstance(request, ForwardBackwardRequest):
                account.gradient += loss
            logprobs = [np.full(w.shape, account.value, np.float32) for w in weights]
            return ForwardBackwardOutput(
                loss_fn_output_type="ArrayRecord",
                loss_fn_outputs=[
                    ArrayRecord(
                        fields={"logprobs": batched_from_arrays(logprobs)}, num_datums=len(weights)
                    )
                ],
                metrics={"loss:sum": loss},
            )
        if isinstance(request, OptimStepRequest):
            account.value += request.adam.learning_rate * account.gradient
            account.gradient = 0.0
            account.steps += 1
            return OptimStepResult(metrics={"value:mean": account.value})
        if isinstance(request, SaveStateRequest):
            path = f"tinker://{request.model_id}/weights/{request.name}"
            self.saved[path] = dataclasses.replace(account)
            return SavedCheckpoint(size_bytes=8, has_optimizer=True)
        if isinstance(request, LoadStateRequest):
            loaded = _loaded(self.saved[request.path], request.with_optimizer)
            self.accounts[request.model_id] = loaded
            return LoadedState(loaded.steps)
        if isinstance(request, SaveWeightsExternalRequest):
            path = f"tinker://{request.model_id}/external_weights/{request.name}"
            self.saved[path] = dataclasses.replace(account)
            return SavedCheckpoint(size_bytes=4, has_optimizer=False)
        assert isinstance(request, SaveWeightsForSamplerRequest)
        if request.name:
            path = f"tinker://{request.model_id}/sampler_weights/{request.name}"
            self.saved[path] = dataclasses.replace(account)
            return SavedCheckpoint(size_bytes=4, has_optimizer=False)
        session_id = request.model_id.rsplit(":", 2)[0]
        self.samplers[f"{session_id}:sample:{request.sampler_seq_id}"] = account.value
        return SamplerReady()

    async def create_sampler(self, spec: SamplerSpec) -> None:
        await self.create_gate.wait()
        if self.fail_create is not None:
            raise self.fail_create
        value = self.saved[spec.model_path].value if spec.model_path else 0.0
        self.samplers[spec.sampler_id] = value

    async def close_sampler(self, sampler_id: str) -> None:
        del self.samplers[sampler_id]
        self.events.append(f"close {sampler_id}")

    async def sample(self, request: SampleRequest, events: SampleEvents) -> SampleResponse:
        """Sequence i is the prompt's first token plus i, once."""
        self.samples_begun += 1
        try:
            response = SampleResponse()
            first = int(tokens_from_bytes(request.prompt.chunks[0].encoded_text.tokens)[0])
            for i in range(request.num_samples):
                if i:
                    await self.sample_gate.wait()
                if self.fail_sample is not None:
                    raise self.fail_sample
                sequence = SampledSequence(tokens=token_bytes([(first + i) % VOCAB]))
                events.on_sequence(i, sequence)
                response.sequences.append(sequence)
            if request.num_samples == 1:
                await self.sample_gate.wait()
            if request.prompt_logprobs:
                response.prompt_logprobs = np.array([np.nan, -1.0], np.float32).tobytes()
            return response
        except asyncio.CancelledError:
            self.samples_stopped += 1
            raise

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        await self.sample_gate.wait()
        rows = [np.full(len(t), -1.0, np.float32) for t in arrays_from_batched(request.tokens)]
        return ScoreResponse(logprobs=batched_from_arrays(rows))

    async def checkpoints(self) -> Sequence[Checkpoint]:
        return [Checkpoint(path=path, base_model=BASE, size_bytes=8) for path in self.saved]

    async def delete_checkpoint(self, path: str) -> None:
        self.saved.pop(path, None)

    async def import_checkpoint(
        self, checkpoint: Checkpoint, files: Mapping[str, Path]
    ) -> SavedCheckpoint:
        weights = files["adapter_model.safetensors"].read_bytes()
        self.saved[checkpoint.path] = Account(value=float(len(weights)))
        return SavedCheckpoint(len(weights), has_optimizer=False)

    async def copy_checkpoint(self, source: str, checkpoint: Checkpoint) -> SavedCheckpoint:
        await self.create_gate.wait()
        if self.fail_create is not None:
            raise self.fail_create
        self.events.append(f"copy {source}")
        self.saved[checkpoint.path] = dataclasses.replace(self.saved[source])
        return SavedCheckpoint(8, has_optimizer=True)

    async def checkpoint_files(self, path: str) -> Sequence[CheckpointFile]:
        """The account's numbers, and whatever `files` names beside them."""
        contents = {"value.txt": str(self.saved[path].value).encode(), **self.files}
        return [CheckpointFile(name=n, size_bytes=len(data)) for n, data in contents.items()]

    async def read_checkpoint_file(
        self, path: str, name: str, offset: int = 0
    ) -> AsyncIterator[bytes]:
        data = self.files.get(name) or str(self.saved[path].value).encode()
        for start in range(offset, len(data), 7):
            await self.read_gate.wait()
            yield data[start : start + 7]


def _loaded(saved: Account, with_optimizer: bool) -> Account:
    return dataclasses.replace(saved, gradient=0.0, steps=saved.steps if with_optimizer else 0)


class ManualClock(Clock):
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def now(self) -> int:
        return round(self.seconds * 1e9)

    def elapsed(self) -> float:
        return self.seconds


class House:
    """A gateway with what a test needs at hand."""

    def __init__(self, gateway: Gateway, backend: AccountingBackend, clock: ManualClock) -> None:
        self.gateway = gateway
        self.backend = backend
        self.clock = clock

    async def session(self) -> str:
        response = await self.gateway.sessions.create(CreateSessionRequest())
        return response.session.session_id

    async def model(self, session_id: str | None = None, **fields: Any) -> str:
        """The id of a new model that is ready."""
        fields.setdefault("base_model", BASE)
        request = CreateModelRequest(session_id=session_id or await self.session(), **fields)
        operation = await self.gateway.models.create(request)
        done = await self.wait(operation)
        assert done.create_model.model_id == operation.model_id, done
        return operation.model_id

    async def wait(self, operation: Operation) -> Operation:
        """The operation once it is done (or after the longest wait that there is)."""
        request = WaitOperationRequest(name=operation.name)
        response = await self.gateway.operations.wait(request)
        return response.operation

    async def until(self, is_met: Callable[[], bool]) -> None:
        await turn_until(is_met)


async def turn_until(is_met: Callable[[], bool]) -> None:
    """Turn the event loop until something has happened on it."""
    while not is_met():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


def datum(weights: Sequence[float], tokens: Sequence[int] | None = None, **inputs: Any) -> Datum:
    """A datum with as many tokens as there are weights."""
    ids = list(range(len(weights))) if tokens is None else list(tokens)
    arrays = {
        "target_tokens": np.arange(len(weights), dtype=np.int64),
        "weights": np.array(weights, np.float32),
    } | inputs
    return Datum(
        model_input=[Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(ids)))],
        loss_fn_inputs={name: tensor_from_array(array) for name, array in arrays.items()},
    )


def forward_backward(
    model_id: str, weight: float, seq_id: int | None = None, **fields: Any
) -> ForwardBackwardRequest:
    return ForwardBackwardRequest(
        model_id=model_id,
        seq_id=seq_id,
        data=[datum([weight, 0.0])],
        loss_fn="cross_entropy",
        **fields,
    )


def optim_step(
    model_id: str, learning_rate: float = 1.0, seq_id: int | None = None, **fields: Any
) -> OptimStepRequest:
    return OptimStepRequest(
        model_id=model_id, seq_id=seq_id, adam={"learning_rate": learning_rate}, **fields
    )


OpenHouse = Callable[..., Awaitable[House]]


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with all migrations run, to copy: migrating takes a while."""
    path = tmp_path_factory.mktemp("database") / "gateway.db"
    store = Store(f"sqlite:///{path}")
    store.open()
    store.close()
    return path


@pytest.fixture
async def open_house(tmp_path: Path, fresh_database: Path) -> AsyncIterator[OpenHouse]:
    """Opens gateways on the test's own store; each is closed at the end unless it was before."""
    houses: list[House] = []
    shutil.copy(fresh_database, tmp_path / "gateway.db")

    async def open_(
        *, pipeline_depth: int = 4, backend: AccountingBackend | None = None, **settings: Any
    ) -> House:
        backend = backend or AccountingBackend(pipeline_depth=pipeline_depth, folder=tmp_path)
        clock = ManualClock()
        store = Store(f"sqlite:///{tmp_path}/gateway.db")
        gateway = Gateway([backend], store, CoreSettings(**settings), BASE, clock)
        await gateway.start()
        houses.append(House(gateway, backend, clock))
        return houses[-1]

    yield open_
    for house in houses:
        if "close" not in house.backend.events:
            for gate in (house.backend.gate, house.backend.create_gate, house.backend.sample_gate):
                gate.set()
            await house.gateway.close(5)


@pytest.fixture
async def house(open_house: OpenHouse) -> House:
    return await open_house()


@pytest.fixture
def accounting() -> type[AccountingBackend]:
    """The backend, for tests that give it more to do."""
    return AccountingBackend


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return turn_until


class Make:
    """The makers of requests, for tests to write them shortly."""

    datum = staticmethod(datum)
    forward_backward = staticmethod(forward_backward)
    optim_step = staticmethod(optim_step)


@pytest.fixture
def make() -> type[Make]:
    return Make
