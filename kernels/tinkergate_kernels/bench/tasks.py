"""What is timed: each public function, forward alone and with its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tinkergate_kernels.bench import rivals
from tinkergate_kernels.bench.rivals import Way
from tinkergate_kernels.bench.timing import Call
from tinkergate_kernels.linear import linear_logprob, linear_scores
from tinkergate_kernels.losses import evaluate
from tinkergate_kernels.reference.losses import losses
from tinkergate_kernels.selective import selective_logprob

OURS = "ours"
TOP = 8


@dataclass(frozen=True)
class Shape:
    """Of an output layer, and of the rows that pass through it."""

    rows: int
    width: int
    vocab: int


@dataclass(frozen=True)
class Task:
    """One thing to do, and the ways to do it."""

    name: str
    calls: Mapping[str, Call]
    flops: float = 0.0
    """Of the matrix products that it needs at least."""
    bytes: float = 0.0
    """That it must read and write at least, where that is what limits it."""


def tasks(shape: Shape, dtype: torch.dtype, device: torch.device) -> Iterator[Task]:
    """All of them, on random inputs. The ones over logits and losses need memory for N x V."""
    draw = torch.Generator().manual_seed(0)

    def normal(*extent: int) -> Tensor:
        return torch.randn(*extent, generator=draw).to(device=device, dtype=dtype)

    hidden = normal(shape.rows, shape.width) * 5
    weight = normal(shape.vocab, shape.width) / shape.width**0.5
    targets = torch.randint(0, shape.vocab, (shape.rows,), generator=draw).to(device)
    upstream = torch.randn(shape.rows, generator=draw).to(device)
    product = 2.0 * shape.rows * shape.width * shape.vocab
    ways: dict[str, Way] = {OURS: linear_logprob, **rivals.from_states(device)}
    yield Task(
        "linear_logprob, forward",
        {name: _forward(way, hidden, weight, targets) for name, way in ways.items()},
        flops=product,
    )
    yield Task(
        "linear_logprob, forward and gradient of the states",
        {name: _gradient(way, hidden, upstream, weight, targets) for name, way in ways.items()},
        flops=2 * product,
    )

    def scores() -> object:
        return linear_scores(hidden, weight, targets, entropy=True, topk=TOP)

    yield Task(
        f"linear_scores, entropy and top-{TOP}",
        {OURS: scores, "plain": partial(_plain_scores, hidden, weight, targets)},
        flops=product,
    )

    logits = hidden @ weight.T
    size = float(logits.numel() * logits.element_size())
    ways = {OURS: selective_logprob, **rivals.from_logits()}
    yield Task(
        "selective_logprob, forward",
        {name: _forward(way, logits, targets) for name, way in ways.items()},
        bytes=size,
    )
    yield Task(
        "selective_logprob, forward and gradient of the logits",
        {name: _gradient(way, logits, upstream, targets) for name, way in ways.items()},
        bytes=3 * size,
    )
    if dtype == torch.float32:
        yield _loss(64 * shape.rows, draw, device)


@torch.no_grad()
def _plain_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> object:
    logprobs = torch.log_softmax(hidden @ weight.T, dim=1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=1)
    return logprobs.gather(1, targets[:, None]), entropy, logprobs.topk(TOP, dim=1)


def _loss(tokens: int, draw: torch.Generator, device: torch.device) -> Task:
    logprobs = -torch.randn(tokens, generator=draw).abs().to(device)
    inputs = {
        "logprobs": logprobs - 0.1,
        "advantages": torch.randn(tokens, generator=draw).to(device),
    }
    offsets = torch.arange(0, tokens + 1, tokens // 16, device=device)

    def plain() -> object:
        leaf = logprobs.detach().requires_grad_()
        return torch.autograd.grad(losses("ppo", leaf, inputs, offsets).sum(), leaf)

    return Task(
        "losses.evaluate, ppo with gradient and metrics; the others without metrics",
        {OURS: lambda: evaluate("ppo", logprobs, inputs, offsets), "autograd": plain},
        # Three inputs and the gradient, one float each.
        bytes=16.0 * tokens,
    )


def _forward(way: Way, *arguments: Tensor) -> Call:
    def call() -> object:
        with torch.no_grad():
            return way(*arguments)

    return call


def _gradient(way: Way, leaf: Tensor, upstream: Tensor, *arguments: Tensor) -> Call:
    def call() -> object:
        own = leaf.detach().requires_grad_()
        logprobs = way(own, *arguments)
        return torch.autograd.grad(logprobs, own, upstream.to(logprobs.dtype))

    return call
