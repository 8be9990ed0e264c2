"""The embedded engine over gRPC against plain PyTorch, in one run.

    python tests/bench/engine.py

1. Training: a gateway with the default model and a plain PyTorch + PEFT loop with padded batches
   take the same batches of uneven lengths in turn. Tokens are real ones, padding not counted.
2. Sampling: 16 concurrent calls to the gateway and `transformers` generate with batch 16 draw as
   many tokens from the same prompts in turn.
3. Overhead: pipelined steps of a micro model over gRPC, and the same steps by the engine's own
   trainer in this process; what is between them is the gateway's.
4. Head: the engine's own trainer with the kernels' logprobs, and with logprobs from whole logits
   (log_softmax and gather), takes the same batches in turn.

Times are of this machine; the ratios are the finding.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import plain_torch
import torch
from micro_model import write_micro_model
from numpy.typing import NDArray
from torch import Tensor

import tinkergate_client
from tinkergate.engine import trainer
from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel
from tinkergate.engine.model_files import DEFAULT_MODEL, ModelFiles
from tinkergate.engine.optimizer import AdamSettings
from tinkergate.engine.trainer import Example, Trainer

Tokens = NDArray[np.int64]
RANK = 16
LEARNING_RATE = 1e-4
BATCH = 8
NEW_TOKENS = 64
CALLS = 16


@contextmanager
def gateway(model: Path, folder: Path) -> Iterator[str]:
    """A gateway process that serves one base model; gives its address."""
    command = [sys.executable, "-m", "tinkergate", "serve", "--grpc", "127.0.0.1:0"]
    command += ["--data-dir", str(folder), "--model", str(model), "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready.startswith("listening grpc="):
            raise SystemExit("the gateway did not start")
        yield ready.split("=")[1].strip()
    finally:
        process.terminate()
        process.wait(60)


def uneven_batches(vocabulary: int, count: int) -> list[list[Tokens]]:
    """Batches with lengths like those of chat data: many short, few long (16 to 256 tokens)."""
    draw = np.random.default_rng(0)
    return [
        [
            draw.integers(100, vocabulary, int(np.clip(draw.lognormal(4.0, 0.7), 16, 256)))
            for _ in range(BATCH)
        ]
        for _ in range(count)
    ]


def timed(run: Callable[[], int]) -> float:
    """Tokens a second of a run that answers its tokens."""
    begin = time.perf_counter()
    return run() / (time.perf_counter() - begin)


def report(
    title: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    than: str,
    us: str = "gateway",
) -> None:
    """Print both sides' medians, and the ratios of the pairs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"\n{title}")
    print(f"  {us:<14} {statistics.median(ours):8.1f} {unit}")
    print(f"  {than:<14} {statistics.median(theirs):8.1f} {unit}")
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"  ratio          {middle:8.2f} ({low:.2f} to {high:.2f})")


def bench_training(client: tinkergate_client.Client, folder: Path, rounds: int) -> None:
    """Training tokens a second on uneven lengths."""
    loop = plain_torch.PaddedLoop(folder, RANK, LEARNING_RATE)
    batches = uneven_batches(40_000, rounds + 1)
    ours: list[float] = []
    theirs: list[float] = []
    with client.create_session() as session:
        model = session.create_model(rank=RANK, seed=0)

        def gateway_step(batch: list[Tokens]) -> int:
            data = [tinkergate_client.datum(tokens[:-1], tokens[1:]) for tokens in batch]
            loss = model.forward_backward(data)
            step = model.optim_step(learning_rate=LEARNING_RATE, eps=1e-12)
            loss.result()
            step.result()
            return sum(map(len, batch))

        def plain_step(batch: list[Tokens]) -> int:
            loop.step(batch)
            return sum(map(len, batch))

        for number, batch in enumerate(batches):
            pair = (timed(lambda b=batch: gateway_step(b)), timed(lambda b=batch: plain_step(b)))
            if number:  # the first pair warms up
                ours.append(pair[0])
                theirs.append(pair[1])
    real = sum(len(tokens) for batch in batches[1:] for tokens in batch)
    padded = sum(BATCH * max(map(len, batch)) for batch in batches[1:])
    print(f"\n(batches of {BATCH}; padding would be {1 - real / padded:.0%} of the tokens)")
    report("training, LoRA on all linear layers", "tokens/s", ours, theirs, "padded loop")


def bench_sampling(client: tinkergate_client.Client, folder: Path, rounds: int) -> None:
    """Tokens a second of 16 concurrent samples."""
    plain = plain_torch.load(folder)
    draw = np.random.default_rng(1)
    prompts = [draw.integers(100, 40_000, draw.integers(16, 64)) for _ in range(CALLS)]
    ours: list[float] = []
    theirs: list[float] = []
    with ThreadPoolExecutor(CALLS) as pool:
        sampler = client.sampler()

        def gateway_samples() -> int:
            def one(prompt: Tokens) -> int:
                result = sampler.sample(prompt, max_tokens=NEW_TOKENS, stop=[])
                return len(result.sequences[0].tokens)

            return sum(pool.map(one, prompts))

        for number in range(rounds + 1):
            pair = (
                timed(gateway_samples),
                timed(lambda: plain_torch.generate(plain, prompts, NEW_TOKENS)),
            )
            if number:
                ours.append(pair[0])
                theirs.append(pair[1])
    report(f"sampling, {CALLS} at once", "tokens/s", ours, theirs, "generate")


def bench_overhead(rounds: int, steps: int) -> None:
    """Milliseconds an operation over gRPC, less those of the trainer alone."""
    tokens = np.arange(1, 33, dtype=np.int64)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_micro_model(Path(scratch) / "micro")
        base = BaseModel.load(folder)
        adapters = Adapters(base)
        adapters.create("alone", LoraSpec(rank=8, alpha=32, seed=0))
        trainer = Trainer(base, adapters, "alone")
        example = Example(tokens[:-1], {"target_tokens": tokens[1:]})

        def alone() -> float:
            begin = time.perf_counter()
            for _ in range(steps):
                for _ in trainer.forward_backward([example], "cross_entropy", {}, backward=True):
                    pass
                trainer.optim_step(AdamSettings(learning_rate=LEARNING_RATE))
            return (time.perf_counter() - begin) / (2 * steps) * 1e3

        with (
            gateway(folder, Path(scratch) / "data") as address,
            tinkergate_client.connect(address) as client,
            client.create_session() as session,
        ):
            model = session.create_model(rank=8, seed=0)
            data = [tinkergate_client.datum(tokens[:-1], tokens[1:])]

            def piped() -> float:
                begin = time.perf_counter()
                futures = []
                for _ in range(steps):
                    futures.append(model.forward_backward(data))
                    futures.append(model.optim_step(learning_rate=LEARNING_RATE))
                for future in futures:
                    future.result()
                return (time.perf_counter() - begin) / (2 * steps) * 1e3

            pairs = [(piped(), alone()) for _ in range(rounds + 1)][1:]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    overhead = statistics.median(a - b for a, b in pairs)
    print(f"\nmicro model (2 layers, width 64), {steps} steps of 2 operations, pipelined")
    print(f"  gateway        {ours:8.2f} ms an operation, {500 / ours:.0f} steps/s")
    print(f"  trainer alone  {theirs:8.2f} ms an operation, {500 / theirs:.0f} steps/s")
    print(f"  overhead       {overhead:8.2f} ms an operation (ratio {ours / theirs:.2f})")


def whole_logits(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    lora: tuple[Tensor, Tensor, float] | None,
) -> Tensor:
    """What `linear_logprob` computes, as it is computed without it."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if lora is not None:
        a, b, scale = lora
        logits = logits + scale * ((hidden @ a.T) @ b.T)
    return torch.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]


def bench_head(folder: Path, rounds: int) -> None:
    """Training tokens a second with and without the kernels."""
    base = BaseModel.load(folder)
    adapters = Adapters(base)
    adapters.create("alone", LoraSpec(rank=RANK, alpha=32, seed=0))
    model = Trainer(base, adapters, "alone")
    batches = uneven_batches(40_000, rounds + 1)

    def step(batch: list[Tokens]) -> int:
        examples = [Example(tokens[:-1], {"target_tokens": tokens[1:]}) for tokens in batch]
        for _ in model.forward_backward(examples, "cross_entropy", {}, backward=True):
            pass
        model.optim_step(AdamSettings(learning_rate=LEARNING_RATE))
        return sum(map(len, batch))

    kernels = trainer.linear_logprob
    ours: list[float] = []
    theirs: list[float] = []
    for number, batch in enumerate(batches):
        pair = []
        for logprobs in (kernels, whole_logits):
            trainer.linear_logprob = logprobs  # type: ignore[assignment]
            pair.append(timed(lambda b=batch: step(b)))
        if number:
            ours.append(pair[0])
            theirs.append(pair[1])
    trainer.linear_logprob = kernels
    report("training in this process, by head", "tokens/s", ours, theirs, "whole logits", "kernels")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the embedded engine with plain PyTorch.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of the micro model, a round")
    parser.add_argument("--only", choices=["training", "sampling", "overhead", "head"])
    arguments = parser.parse_args()
    folder = ModelFiles().path(DEFAULT_MODEL)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds"
    )
    if arguments.only in (None, "head"):
        bench_head(folder, arguments.rounds)
    if arguments.only not in ("overhead", "head"):
        with (
            tempfile.TemporaryDirectory() as scratch,
            gateway(folder, Path(scratch)) as address,
            tinkergate_client.connect(address) as client,
        ):
            if arguments.only != "sampling":
                bench_training(client, folder, arguments.rounds)
            if arguments.only != "training":
                bench_sampling(client, folder, arguments.rounds)
    if arguments.only in (None, "overhead"):
        bench_overhead(arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
