"""Evaluating a loss: on its own, and as a step of autograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinkergate_kernels.dispatch import way_on
from tinkergate_kernels.losses.problem import LossResult, problem


def evaluate(
    name: str,
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    offsets: Tensor,
    config: Mapping[str, object] | None = None,
) -> LossResult:
    """The loss of that name in `LOSSES`, its gradient in the logprobs, and its metrics, all from
    one evaluation.

    logprobs: float32 [T], of the target tokens of S datums laid end to end, or [T, K] where the
    loss allows it. inputs: by name, float32, shaped like logprobs; optional ones may be absent.
    offsets: int64 [S + 1], datum s being the tokens offsets[s]..offsets[s + 1]; datums may be
    empty. config: settings by name; those absent have their defaults.

    The loss is a sum over tokens and datums. On a CPU, and in plain PyTorch, it is computed in
    float64; by the kernels in float32, and summed in float64. Sums are taken in a fixed order:
    equal calls give equal bits. A masked token (weight or advantage 0) adds nothing, whatever its
    other numbers are. What overflows is inf, as it is. Raises ValueError, before any work, naming
    the argument, its value and the rule.
    """
    asked = problem(name, logprobs, inputs, offsets, config or {})
    # Imported here because Triton is not there on every machine.
    if way_on(logprobs.device) == "gpu":
        from tinkergate_kernels.gpu.losses import solve
    else:
        from tinkergate_kernels.plain.losses import solve
    result = solve(asked)
    return result._replace(gradient=result.gradient.view(logprobs.shape))


def loss(
    name: str,
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    offsets: Tensor,
    config: Mapping[str, object] | None = None,
) -> Tensor:
    """The loss of `evaluate` as a float32 scalar that can be differentiated once in `logprobs`. The
    gradient is computed with the loss; the backward only hands it on."""
    value: Tensor = _Loss.apply(logprobs, name, inputs, offsets, config)
    return value


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logprobs: Tensor,
        name: str,
        inputs: Mapping[str, Tensor],
        offsets: Tensor,
        config: Mapping[str, object] | None,
    ) -> Tensor:
        result = evaluate(name, logprobs, inputs, offsets, config)
        ctx.save_for_backward(result.gradient)
        return result.loss.to(logprobs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None
