"""Checks of `linear_logprob` and `linear_scores`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tinkergate_kernels import (
    Lora,
    concatenated,
    linear_logprob,
    linear_partials,
    linear_scores,
    merge,
)
from tinkergate_kernels.reference.linear import linear_logits
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
    width: int = 72
    vocab: int = 5003
    targets: int | None = None
    rank: int = 0
    bias: bool = False
    softcap: float | None = None
    row_temperature: bool = False
    trained: bool = False


_SHAPES = (
    _Shape("plain", trained=True),
    _Shape("K targets, LoRA, bias, row temperatures", 67, 64, 2048, 3, 8, True, None, True),
    _Shape("softcap", softcap=30.0, rank=4, trained=True),
    _Shape("full vocabulary", rows=24, width=576, vocab=49152),
    _Shape("one row, one token", rows=1, width=3, vocab=1),
)


def cases() -> Iterator[Case]:
    """One for each shape and dtype, and one for what must hold bit for bit."""
    for dtype in DTYPES:
        for shape in _SHAPES:
            name = f"linear {dtype}, {shape.name}"
            yield Case(name, partial(_compared, shape, dtype))
        yield Case(f"linear {dtype}, rows alone and together", partial(_batches, dtype))
        yield Case(f"linear {dtype}, parts of the vocabulary", partial(_parts, dtype))
    yield Case("linear, rows that are ignored", _ignored)


class _Inputs:
    def __init__(self, shape: _Shape, dtype: str, device: torch.device) -> None:
        draw = Draw(seed=shape.rows + shape.vocab)
        kind = DTYPES[dtype]

        def of(tensor: Tensor) -> Tensor:
            return tensor.to(kind).to(device)

        self.hidden = of(draw.normal(shape.rows, shape.width) * 4)
        self.weight = of(draw.normal(shape.vocab, shape.width) / shape.width**0.5)
        self.bias = of(draw.normal(shape.vocab)) if shape.bias else None
        self.lora: Lora | None = None
        if shape.rank:
            a = of(draw.normal(shape.rank, shape.width) / shape.width**0.5)
            self.lora = Lora(a, of(draw.normal(shape.vocab, shape.rank) * 0.2), 1.7)
        extent = (shape.rows,) if shape.targets is None else (shape.rows, shape.targets)
        self.targets = draw.tokens(shape.vocab, *extent).to(device)
        self.upstream = draw.normal(*extent).to(device)
        rows = 0.7 + draw.normal(shape.rows).abs()
        self.temperature: float | Tensor = rows.to(device) if shape.row_temperature else 1.3
        self.softcap = shape.softcap
        self.leaves = {"hidden": self.hidden}
        if self.lora is not None:
            self.leaves |= {"A": self.lora.a, "B": self.lora.b}
        if shape.trained:
            self.leaves["weight"] = self.weight
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def logprobs(self) -> Tensor:
        return linear_logprob(
            self.hidden,
            self.weight,
            self.targets,
            bias=self.bias,
            lora=self.lora,
            temperature=self.temperature,
            softcap=self.softcap,
        )


def _compared(shape: _Shape, dtype: str, device: torch.device) -> Iterator[Measure]:
    bars = bars_of(dtype, device)
    own = _Inputs(shape, dtype, device)
    found = own.logprobs()
    gradients = torch.autograd.grad(found, list(own.leaves.values()), own.upstream)

    exact = {
        name: leaf.detach().cpu().double().requires_grad_() for name, leaf in own.leaves.items()
    }
    lora = None
    if own.lora is not None:
        lora = Lora(exact["A"], exact["B"], own.lora.scale)
    temperature = own.temperature
    if isinstance(temperature, Tensor):
        temperature = temperature.double().cpu()
    logits = linear_logits(
        exact["hidden"],
        exact.get("weight", own.weight.detach().cpu().double()),
        None if own.bias is None else own.bias.double().cpu(),
        lora,
        temperature,
        own.softcap,
    )
    every = torch.log_softmax(logits, dim=1)
    columns = own.targets.cpu().view(shape.rows, -1)
    wanted = every.gather(1, columns).view(found.shape)
    yield Measure("logprob", absolute(found, wanted), bars.score)
    yield Measure("logprob above 0", float(found.detach().max()), 0.0)

    expected = torch.autograd.grad(wanted, list(exact.values()), own.upstream.double().cpu())
    for name, one, other in zip(exact, gradients, expected, strict=True):
        yield Measure(f"gradient of {name}", relative(one, other), bars.gradient)

    scores = linear_scores(
        own.hidden,
        own.weight,
        own.targets,
        bias=own.bias,
        lora=own.lora,
        temperature=own.temperature,
        softcap=own.softcap,
        entropy=True,
        topk=TOP,
    )
    yield Measure("scores: logprob", absolute(scores.logprob, wanted), bars.score)
    sums = logits.logsumexp(dim=1)
    yield Measure("scores: log-sum-exp", absolute(scores.logsumexp, sums), bars.score)
    entropy = -(every.exp() * every).sum(dim=1)
    assert scores.entropy is not None
    yield Measure("scores: entropy", absolute(scores.entropy, entropy), bars.entropy)
    best = every.topk(min(TOP, shape.vocab), dim=1).values
    # Two tokens that are as likely but for rounding may come in either order: what counts is that
    # each one's logprob is right, and that it is one of the largest.
    yield Measure("scores: top-k logprobs", absolute(scores.topk_logprobs, best), bars.score)
    named = every.gather(1, scores.topk_ids.cpu())
    yield Measure("scores: top-k ids", absolute(named, best), 2 * bars.score)


def _batches(dtype: str, device: torch.device) -> Iterator[Measure]:
    own = _Inputs(_Shape("", rows=500, vocab=3000, width=64), dtype, device)
    with torch.no_grad():
        whole = own.logprobs()
        for count in (1, 7, 64):
            part = linear_logprob(
                own.hidden[:count], own.weight, own.targets[:count], temperature=own.temperature
            )
            told = f"logprobs of {count} rows that change with 500 beside them"
            yield Measure(told, different(part, whole[:count]), 0.0)


def _parts(dtype: str, device: torch.device) -> Iterator[Measure]:
    own = _Inputs(_Shape("", softcap=20.0), dtype, device)
    scored = linear_scores(
        own.hidden,
        own.weight,
        own.targets,
        temperature=own.temperature,
        softcap=own.softcap,
        entropy=True,
    )
    found: list[Tensor] = []
    for cuts in ([0, 5003], [0, 2048, 5003], [0, 1024, 2048, 4096, 5003]):
        partials = [
            linear_partials(
                own.hidden,
                own.weight[start:end],
                own.targets,
                vocab_start=start,
                vocab_total=5003,
                temperature=own.temperature,
                softcap=own.softcap,
                split=1024,
            )
            for start, end in itertools.pairwise(cuts)
        ]
        merged = merge(concatenated(partials))
        together = torch.cat([merged.logprob[:, 0], merged.logsumexp, merged.entropy])
        told = f"scores of {len(partials)} parts"
        assert scored.entropy is not None
        whole = torch.cat([scored.logprob, scored.logsumexp, scored.entropy]).double().cpu()
        yield Measure(told, absolute(together, whole), bars_of(dtype, device).score)
        found.append(together)
    for other in found[1:]:
        yield Measure("scores that the number of parts changes", different(other, found[0]), 0.0)


def _ignored(device: torch.device) -> Iterator[Measure]:
    own = _Inputs(_Shape("", rows=8, targets=2), "fp32", device)
    with torch.no_grad():
        own.hidden[3] = torch.nan
    own.targets[3] = torch.tensor([-100, 5003])
    own.targets[4, 0] = -1
    found = own.logprobs()
    (gradient,) = torch.autograd.grad(found, [own.hidden], own.upstream)
    yield Measure("logprobs that are not 0", float((found[3] != 0).sum() + (found[4, 0] != 0)), 0.0)
    yield Measure("gradients that are not 0", float((gradient[3] != 0).sum()), 0.0)
    kept = [row for row in range(8) if row != 3]
    yield Measure("numbers that are not finite", float((~gradient[kept].isfinite()).sum()), 0.0)
