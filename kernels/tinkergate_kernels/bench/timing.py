"""Times of calls, and what the device can do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Rates:
    """Of a device, probed."""

    flops: float
    """FLOP/s of a matrix product."""
    bytes: float
    """Bytes/s of a copy, read and written."""


def medians(
    calls: Mapping[str, Call], device: torch.device, rounds: int
) -> tuple[dict[str, float], dict[str, str]]:
    """The median time of each call in seconds, over rounds that take all calls in turn, and for
    those that do not run, why. The first, untimed round compiles what is compiled."""
    running, broken = dict(calls), {}
    for name, call in calls.items():
        try:
            seconds(call, device)
        # Whatever stops a rival is told, and is no reason to stop the measurement.
        except Exception as error:
            del running[name]
            why = str(error).strip().splitlines()
            broken[name] = ": ".join([type(error).__name__, *why[:1]])
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, call in running.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(each) for name, each in times.items()}, broken


def seconds(call: Call, device: torch.device) -> float:
    """Of one call, until the device has done it."""
    _wait(device)
    begin = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begin


def probed(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], rounds: int
) -> Rates:
    """What a product of [N, D] and [D, V], and a copy of as many bytes as the product has, do."""
    rows, width, vocab = shape
    left = torch.randn(rows, width, device=device).to(dtype)
    right = torch.randn(vocab, width, device=device).to(dtype)
    out = torch.empty(rows, vocab, device=device, dtype=dtype)
    source = torch.empty_like(out).fill_(1)
    calls: dict[str, Call] = {
        "product": lambda: torch.mm(left, right.T, out=out),
        "copy": lambda: out.copy_(source),
    }
    times, _ = medians(calls, device, rounds)
    return Rates(
        flops=2 * rows * width * vocab / times["product"],
        bytes=2 * out.numel() * out.element_size() / times["copy"],
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
