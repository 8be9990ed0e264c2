"""The kernels' CPU path against what else computes logprobs on a CPU, in one run.

    PYTHONPATH=tests/fixtures python tests/bench/head.py

The default model reads real text; its hidden states, unembedding and next tokens are the input:
D = 576, V = 49152, N = 512 and 2048, float32 and bfloat16. Every rival computes the logprobs of the
next tokens and, in the second table, the gradient of the states for a gradient from above that
differs by token. Errors are against float64, and the memory is what the process grows by at most.
The rate of bare matrix products is measured in the same run; the limit is the products that are
needed (2NDV for logprobs, 4NDV with the gradient) at that rate.

Times are of this machine; the ratios are the finding. `cut-cross-entropy` and `liger-kernel` are
left out, and said to be, where they are not installed or do not run on this CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from head_rivals import RIVALS, Rival
from real_states import SEQUENCE, real_states
from threadpoolctl import threadpool_info
from torch import Tensor

from tinkergate.engine.model_files import DEFAULT_MODEL, ModelFiles


@dataclass
class Case:
    """One table: what all rivals compute."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    logprobs: Tensor = field(init=False)
    """Float64."""
    gradient: Tensor = field(init=False)
    """Float64."""

    def __post_init__(self) -> None:
        parts = []
        self.logprobs = torch.empty(len(self.hidden), dtype=torch.float64)
        weight = self.weight.double()
        for begin in range(0, len(self.hidden), 128):
            rows = slice(begin, begin + 128)
            states = self.hidden[rows].double()
            logprobs = torch.log_softmax(states @ weight.T, dim=1)
            chosen = self.targets[rows, None]
            self.logprobs[rows] = logprobs.gather(1, chosen)[:, 0]
            mean = logprobs.exp_() @ weight
            pull = weight[self.targets[rows]] - mean
            parts.append(self.upstream[rows, None].double() * pull)
        self.gradient = torch.cat(parts)


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def growth_mib(run: Callable[[], object]) -> float:
    """By how much the process grows at most while something runs; nan where it cannot be told."""
    marks = Path("/proc/self/clear_refs")
    if not marks.exists():
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    marks.write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(name)


def product_rates(count: int, width: int, dtype: torch.dtype, rounds: int) -> tuple[float, float]:
    """GFLOP/s of the quickest bare products hidden @ W.T and P @ W here."""
    hidden = torch.randn(count, width).to(dtype)
    weight = torch.randn(4096, width).to(dtype)
    tile = torch.randn(count, 4096).to(dtype)
    work = 2 * count * width * 4096 / 1e9
    first = [median_seconds(lambda: hidden @ weight.T, rounds)]
    second = [median_seconds(lambda: tile @ weight, rounds)]
    if dtype == torch.float32:
        h, w, p = hidden.numpy(), weight.numpy(), tile.numpy()
        first.append(median_seconds(lambda: np.matmul(h, w.T), rounds))
        second.append(median_seconds(lambda: np.matmul(p, w), rounds))
    return work / min(first), work / min(second)


@dataclass
class Row:
    """One rival's figures."""

    name: str
    seconds: float
    memory: float
    logprob_error: float
    gradient_error: float


def measure(rival: Rival, case: Case, rounds: int, *, backward: bool) -> Row | str:
    """A rival's figures, or why there are none."""

    def run() -> tuple[Tensor, Tensor | None]:
        hidden = case.hidden.detach().requires_grad_(backward)
        logprobs = rival.logprobs(hidden, case.weight, case.targets)
        if backward:
            logprobs.backward(case.upstream.to(logprobs.dtype))
        return logprobs.detach(), hidden.grad

    try:
        with torch.set_grad_enabled(backward):
            logprobs, gradient = run()
            seconds = median_seconds(run, rounds)
            memory = growth_mib(run)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    found = (logprobs.double() - case.logprobs).abs().max()
    wrong = float("nan")
    if gradient is not None:
        difference = (gradient.double() - case.gradient).abs().max()
        wrong = float(difference / case.gradient.abs().max())
    return Row(rival.name, seconds, memory, float(found), wrong)


def table(case: Case, dtype: torch.dtype, rounds: int, *, backward: bool) -> None:
    """Measure all rivals on one case, and print them."""
    count, width = case.hidden.shape
    rates = product_rates(count, width, dtype, rounds)
    work = 2 * count * width * len(case.weight) / 1e9
    limit = work / rates[0] + (work / rates[1] if backward else 0)
    what = "logprobs and gradient" if backward else "logprobs"
    kind = str(dtype).removeprefix("torch.")
    print(f"\n{what}, {kind}, N = {count}, D = {width}, V = {len(case.weight)}")
    print(f"  bare products {rates[0]:.0f} and {rates[1]:.0f} GFLOP/s: limit {limit * 1e3:.0f} ms")
    print(f"  {'':<34}{'ms':>8}{'x limit':>9}{'ours is':>10}{'MiB':>8}{'logprob':>10}{'grad':>10}")
    rows = []
    for rival in RIVALS:
        found = measure(rival, case, rounds, backward=backward)
        if isinstance(found, str):
            print(f"  {rival.name:<34}  left out: {found}")
        else:
            rows.append(found)
    ours = next(row for row in rows if row.name == RIVALS[0].name)
    for row in rows:
        print(
            f"  {row.name:<34}{row.seconds * 1e3:8.0f}{row.seconds / limit:9.2f}"
            f"{row.seconds / ours.seconds:9.2f}x{row.memory:8.0f}{row.logprob_error:10.1e}"
            f"{row.gradient_error:10.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the kernels' CPU path with its rivals.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}")
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            print(f"  {pool['internal_api']} {pool['version']} ({pool.get('architecture', '?')})")
    count = -(-max(arguments.rows) // SEQUENCE) * SEQUENCE
    hidden, weight, targets = real_states(ModelFiles().path(DEFAULT_MODEL), count)
    upstream = torch.randn(count, generator=torch.Generator().manual_seed(0))
    for name in arguments.dtype or ["float32", "bfloat16"]:
        dtype = getattr(torch, name)
        for count in arguments.rows:
            rows = slice(0, count)
            case = Case(hidden[rows].to(dtype), weight.to(dtype), targets[rows], upstream[rows])
            for backward in (False, True):
                table(case, dtype, arguments.rounds, backward=backward)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
