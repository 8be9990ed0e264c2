"""Checks of `selective_logprob` and `selective_scores`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tinkergate_kernels.reference import selective as reference
from tinkergate_kernels.selective import selective_logprob, selective_scores
from tinkergate_kernels.selftest.checks import (
    DTYPES,
    Case,
    Draw,
    Measure,
    absolute,
    bars_of,
    different,
    relative,
)

TOP = 5


@dataclass(frozen=True)
class _Shape:
    name: str
    rows: int = 33
    vocab: int = 5003
    targets: int | None = None
    bias: bool = False
    softcap: float | None = None
    row_temperature: bool = False


_SHAPES = (
    _Shape("plain"),
    _Shape("K targets, bias, row temperatures", 67, 2048, 3, True, None, True),
    _Shape("softcap", softcap=30.0),
    _Shape("full vocabulary", rows=16, vocab=49152),
    _Shape("one row, one token", rows=1, vocab=1),
)


def cases() -> Iterator[Case]:
    """One for each shape and dtype, and some for what must hold exactly."""
    for dtype in DTYPES:
        for shape in _SHAPES:
            name = f"selective {dtype}, {shape.name}"
            yield Case(name, partial(_compared, shape, dtype))
    yield Case("selective, rows alone and together", _batches)
    yield Case("selective, logits of any size", _sizes)
    yield Case("selective, rows that are ignored", _ignored)
    yield Case("selective, a row beyond 2^31 logits", _far)


def _compared(shape: _Shape, dtype: str, device: torch.device) -> Iterator[Measure]:
    bars = bars_of(dtype, device)
    draw = Draw(seed=shape.rows + shape.vocab)
    kind = DTYPES[dtype]
    logits = (draw.normal(shape.rows, shape.vocab) * 9).to(kind)
    bias = draw.normal(shape.vocab).to(kind) if shape.bias else None
    extent = (shape.rows,) if shape.targets is None else (shape.rows, shape.targets)
    targets = draw.tokens(shape.vocab, *extent)
    rows = 0.7 + draw.normal(shape.rows).abs()
    temperature: float | Tensor = rows if shape.row_temperature else 1.3
    upstream = [draw.normal(*extent), draw.normal(shape.rows), draw.normal(shape.rows)]

    exact = logits.double().requires_grad_()
    wanted = reference.selective_scores(
        exact,
        targets,
        temperature=temperature.double() if isinstance(temperature, Tensor) else temperature,
        softcap=shape.softcap,
        bias=None if bias is None else bias.double(),
        entropy=True,
        topk=min(TOP, shape.vocab),
    )
    own = logits.to(device).requires_grad_()
    found = selective_scores(
        own,
        targets.to(device),
        temperature=temperature.to(device) if isinstance(temperature, Tensor) else temperature,
        softcap=shape.softcap,
        bias=None if bias is None else bias.to(device),
        entropy=True,
        topk=min(TOP, shape.vocab),
    )
    assert found.entropy is not None
    assert wanted.entropy is not None
    assert found.topk_logprobs is not None
    assert wanted.topk_logprobs is not None
    assert found.topk_ids is not None
    assert wanted.topk_ids is not None
    yield Measure("logprob", absolute(found.logprob, wanted.logprob), bars.score)
    yield Measure("logprob above 0", float(found.logprob.detach().max()), 0.0)
    yield Measure("log-sum-exp", absolute(found.logsumexp, wanted.logsumexp), bars.score)
    yield Measure("entropy", absolute(found.entropy, wanted.entropy), bars.entropy)
    best = wanted.topk_logprobs
    yield Measure("top-k logprobs", absolute(found.topk_logprobs, best), bars.score)
    every = reference.selective_scores(
        exact.detach(),
        found.topk_ids.cpu(),
        temperature=temperature.double() if isinstance(temperature, Tensor) else temperature,
        softcap=shape.softcap,
        bias=None if bias is None else bias.double(),
    )
    # Two tokens that are as likely but for rounding may come in either order.
    yield Measure("top-k ids", absolute(every.logprob, best), 2 * bars.score)

    sent = [each.to(device) for each in upstream]
    (gradient,) = torch.autograd.grad([found.logprob, found.logsumexp, found.entropy], [own], sent)
    (expected,) = torch.autograd.grad(
        [wanted.logprob, wanted.logsumexp, wanted.entropy], [exact], [x.double() for x in upstream]
    )
    yield Measure("gradient of the logits", relative(gradient, expected), bars.gradient)


def _batches(device: torch.device) -> Iterator[Measure]:
    draw = Draw(seed=2)
    logits, targets = (draw.normal(500, 3000) * 9).to(device), draw.tokens(3000, 500).to(device)
    whole = selective_logprob(logits, targets)
    for count in (1, 7, 64):
        part = selective_logprob(logits[:count], targets[:count])
        told = f"logprobs of {count} rows that change with 500 beside them"
        yield Measure(told, different(part, whole[:count]), 0.0)


def _sizes(device: torch.device) -> Iterator[Measure]:
    draw = Draw(seed=3)
    # Multiples of 1/64 below 32, so that a shift by 1024 is exact.
    logits = (draw.normal(9, 700) * 9).clamp(-31, 31).mul(64).round().div(64).to(device)
    targets = draw.tokens(700, 9).to(device)
    plain = selective_logprob(logits, targets)
    for shift in (-1024.0, 1024.0):
        moved = selective_logprob(logits + shift, targets)
        yield Measure(
            f"logprobs, shifted by {shift:g}", absolute(moved, plain.double().cpu()), 2e-6
        )
    uniform = torch.full((9,), 700.0).log().neg().double()
    for level in (-1e30, -1e4, 1e30):
        found = selective_logprob(torch.full_like(logits, level), targets)
        yield Measure(f"logprobs, all logits {level:g}", absolute(found, uniform), 1e-6)
    half = logits.clone()
    half[:, 350:] = -torch.inf
    allowed = targets % 350
    found = selective_logprob(half, allowed)
    wanted = torch.log_softmax(logits[:, :350].double().cpu(), 1)
    wanted = wanted.gather(1, allowed.cpu()[:, None])[:, 0]
    yield Measure(
        "logprobs, half of the logits -inf", absolute(found, wanted), bars_of("fp32", device).score
    )


def _ignored(device: torch.device) -> Iterator[Measure]:
    draw = Draw(seed=4)
    logits = draw.normal(8, 700)
    logits[3] = torch.nan
    targets = draw.tokens(700, 8, 2)
    targets[3] = torch.tensor([-100, 700])
    targets[4, 0] = -1
    own = logits.to(device).requires_grad_()
    found = selective_scores(own, targets.to(device), entropy=True)
    assert found.entropy is not None
    (gradient,) = torch.autograd.grad(found.logprob.sum() + found.entropy.sum(), own)
    wrong = (found.logprob[3] != 0).sum() + (found.logprob[4, 0] != 0) + (found.entropy[3] != 0)
    yield Measure("scores that are not 0", float(wrong + (found.logsumexp[3] != 0)), 0.0)
    yield Measure("gradients that are not 0", float((gradient[3] != 0).sum()), 0.0)
    yield Measure("numbers that are not finite", float((~gradient.isfinite()).sum()), 0.0)


def _far(device: torch.device) -> Iterator[Measure]:
    rows, vocab = 44000, 49152  # 4.3 GB of bf16, of which only the last row is touched
    logits = torch.empty(rows, vocab, dtype=torch.bfloat16, device=device)
    last = (Draw(seed=5).normal(vocab) * 9).bfloat16()
    logits[-1] = last.to(device)
    targets = torch.full((rows,), -100)
    targets[-1] = 31415
    found = selective_logprob(logits, targets.to(device))
    wanted = torch.log_softmax(last.double(), 0)[31415]
    yield Measure("logprob", absolute(found[-1], wanted), bars_of("bf16", device).score)
    yield Measure("others that are not 0", float((found[:-1] != 0).sum()), 0.0)
