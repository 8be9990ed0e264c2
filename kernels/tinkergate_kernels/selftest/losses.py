"""Checks of `losses.evaluate` and `losses.loss`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tinkergate_kernels.losses import LOSSES, LossSpec, evaluate, loss
from tinkergate_kernels.reference.losses import losses as formulas
from tinkergate_kernels.selftest.checks import Case, Draw, Measure, absolute

LENGTHS = (1, 700, 0, 2048, 3, 4096, 129, 6000)
"""Tokens of the datums: an empty one, one of a token, and such as begin and end anywhere in the
tiles of a kernel."""
BOUND = 1e-6


def cases() -> Iterator[Case]:
    """One for each loss of the registry."""
    for name in LOSSES:
        yield Case(f"losses, {name}", partial(_compared, name))


def _compared(name: str, device: torch.device) -> Iterator[Measure]:
    spec = LOSSES[name]
    logprobs, inputs, offsets = _inputs(spec)
    leaf = logprobs.double().requires_grad_()
    exact = {key: each.double() for key, each in inputs.items()}
    wanted = formulas(name, leaf, exact, offsets)
    (gradient,) = torch.autograd.grad(wanted.sum(), leaf)
    # An error of a sum is measured against the size of what is summed.
    scale = float(gradient.abs().sum()) + float(wanted.detach().abs().sum()) + 1

    there = {key: each.to(device) for key, each in inputs.items()}
    own = logprobs.to(device)
    found = evaluate(name, own, there, offsets.to(device))
    yield Measure("loss of a datum", absolute(found.per_datum, wanted) / scale, BOUND)
    yield Measure("loss", abs(float(found.loss) - float(wanted.detach().sum())) / scale, BOUND)
    largest = max(1.0, float(gradient.abs().max()))
    yield Measure("gradient", absolute(found.gradient, gradient) / largest, BOUND)

    own.requires_grad_()
    value = loss(name, own, there, offsets.to(device))
    (stepped,) = torch.autograd.grad(value, own)
    told = "gradients by autograd that are others"
    yield Measure(told, float((stepped != found.gradient).sum()), 0.0)
    again = evaluate(name, own.detach(), there, offsets.to(device))
    changed = (again.gradient != found.gradient).sum() + (again.per_datum != found.per_datum).sum()
    yield Measure("bits that another call changes", float(changed), 0.0)


def _inputs(spec: LossSpec) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Logprobs, inputs and offsets; half of the tokens are masked."""
    draw = Draw(seed=len(spec.name))
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    count = int(offsets[-1])
    logprobs = -3 * draw.normal(count).abs() - 0.01
    inputs = {}
    for key in spec.inputs:
        if "logprobs" in key:
            inputs[key] = (logprobs + 0.3 * draw.normal(count)).clamp(max=0.0)
        elif "threshold" in key:
            middle = 0.85 if "low" in key else 1.15
            inputs[key] = middle + 0.1 * draw.normal(count).clamp(-1, 1)
        else:
            kept = (draw.normal(count) > 0).float()
            inputs[key] = kept if "mask" in key else kept * draw.normal(count)
    return logprobs, inputs, offsets
