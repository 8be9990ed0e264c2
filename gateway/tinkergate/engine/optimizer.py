"""AdamW on the weights of one adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from tinkergate.engine.peft_format import mismatch
from tinkergate.errors import ErrorReason, GatewayError, Kind


@dataclass(frozen=True)
class AdamSettings:
    """The settings of one step; the defaults and the formulas are those of `AdamParams` in
    optimizer.proto."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0
    """0 means no clipping."""


@dataclass(frozen=True)
class OptimizerState:
    """What AdamW remembers between steps."""

    step: int
    """Steps taken."""
    exp_avg: dict[str, Tensor]
    """First moments by parameter name, float32 in the parameters' shapes."""
    exp_avg_sq: dict[str, Tensor]
    """Second moments likewise."""


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) with settings that may differ at every step.

    Clipping scales the gradient by min(1, c / |g|) exactly; `torch.nn.utils.clip_grad_norm_` has
    |g| + 1e-6 in its place.
    """

    def __init__(self, parameters: Sequence[tuple[str, Parameter]]) -> None:
        self._names = [name for name, _ in parameters]
        self._parameters: list[Tensor] = [parameter for _, parameter in parameters]
        self._exp_avg = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        self._exp_avg_sq = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        self.steps = 0
        """Steps taken."""

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], settings: AdamSettings) -> float:
        """Move the parameters by their gradients, which are used up. Answers the global norm of
        the gradients before clipping. Raises GatewayError, and moves nothing, if the norm is not
        finite: every weight would be NaN from then on."""
        grads = list(gradients)
        norm = float(torch.stack(torch._foreach_norm(grads)).double().norm())
        if not math.isfinite(norm):
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_NOT_FINITE,
                f"the gradient's norm is {norm}; no step was taken, and the gradient was cleared",
                backend="local",
            )
        if 0 < settings.grad_clip_norm < norm:
            torch._foreach_mul_(grads, settings.grad_clip_norm / norm)
        self._update(grads, settings)
        return norm

    def _update(self, grads: list[Tensor], settings: AdamSettings) -> None:
        self.steps += 1
        beta1, beta2 = settings.beta1, settings.beta2
        if settings.weight_decay:
            decay = 1 - settings.learning_rate * settings.weight_decay
            torch._foreach_mul_(self._parameters, decay)
        torch._foreach_lerp_(self._exp_avg, grads, 1 - beta1)
        torch._foreach_mul_(self._exp_avg_sq, beta2)
        torch._foreach_addcmul_(self._exp_avg_sq, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(self._exp_avg_sq)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**self.steps))
        torch._foreach_add_(roots, settings.eps)
        if settings.eps == 0:
            # 0 / 0: an entry that never had a gradient stays where it is.
            for root in roots:
                root.masked_fill_(root == 0, math.inf)
        rate = settings.learning_rate / (1 - beta1**self.steps)
        torch._foreach_addcdiv_(self._parameters, self._exp_avg, roots, -rate)

    def state(self) -> OptimizerState:
        """A copy of what is remembered."""
        return OptimizerState(
            self.steps,
            {n: t.clone() for n, t in zip(self._names, self._exp_avg, strict=True)},
            {n: t.clone() for n, t in zip(self._names, self._exp_avg_sq, strict=True)},
        )

    def check_state(self, state: OptimizerState) -> None:
        """Raise GatewayError if `state` is not that of the same parameters."""
        if state.step < 0:
            raise mismatch(f"the optimizer state has {state.step} steps; must not be negative")
        for title, moments in (("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)):
            check_like(title, moments, dict(zip(self._names, self._parameters, strict=True)))

    @torch.no_grad()
    def load_state(self, state: OptimizerState | None) -> None:
        """Go on from `state`, which `check_state` has passed; None means from nothing."""
        self.steps = state.step if state else 0
        for name, first, second in zip(self._names, self._exp_avg, self._exp_avg_sq, strict=True):
            if state:
                first.copy_(state.exp_avg[name])
                second.copy_(state.exp_avg_sq[name])
            else:
                first.zero_()
                second.zero_()


def check_like(title: str, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    """Raise GatewayError unless `tensors` have the names and shapes of `like`."""
    if odd := sorted(tensors.keys() ^ like.keys()):
        where = "has no place in the model" if odd[0] in tensors else "is missing"
        raise mismatch(f"{title} do not fit the model: {odd[0]!r} {where}")
    for name, tensor in tensors.items():
        if tensor.shape != like[name].shape:
            raise mismatch(
                f"{title}[{name!r}] has shape {list(tensor.shape)}; the model's is "
                f"{list(like[name].shape)}"
            )
