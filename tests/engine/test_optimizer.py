"""AdamW against its formulas and against torch's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from tinkergate.engine.optimizer import AdamSettings, AdamW, OptimizerState
from tinkergate.errors import ErrorReason, GatewayError

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 1)}


def parameters(seed: int = 0) -> list[tuple[str, Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    return [(n, Parameter(torch.randn(s, generator=generator))) for n, s in SHAPES.items()]


def gradients(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES.values()]


def values(named: list[tuple[str, Parameter]]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for _, parameter in named])


def by_the_book(steps: list[tuple[list[Tensor], AdamSettings]]) -> Tensor:
    """The formulas of optimizer.proto in float64."""
    p = values(parameters()).double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, (grads, s) in enumerate(steps, start=1):
        g = torch.cat([grad.flatten() for grad in grads]).double()
        if s.grad_clip_norm:
            g = g * min(1.0, s.grad_clip_norm / g.norm().item())
        p = p - s.learning_rate * s.weight_decay * p
        m = s.beta1 * m + (1 - s.beta1) * g
        v = s.beta2 * v + (1 - s.beta2) * g**2
        root = (v / (1 - s.beta2**t)).sqrt() + s.eps
        p = p - s.learning_rate * m / (1 - s.beta1**t) / root
    return p


def test_the_formulas_with_settings_that_change_at_every_step() -> None:
    settings = [
        AdamSettings(),
        AdamSettings(learning_rate=0.1, weight_decay=0.2),
        AdamSettings(beta1=0.0, beta2=0.0, learning_rate=0.01),
        AdamSettings(grad_clip_norm=0.5, learning_rate=0.05, eps=0.1),
        AdamSettings(grad_clip_norm=1e6, beta1=0.5, beta2=0.999, weight_decay=0.01),
        AdamSettings(learning_rate=0.0, weight_decay=1.0),
    ]
    steps = [(gradients(seed), s) for seed, s in enumerate(settings)]
    named = parameters()
    optimizer = AdamW(named)
    for grads, s in steps:
        expected = torch.cat([grad.flatten() for grad in grads]).norm().item()
        assert optimizer.step([g.clone() for g in grads], s) == pytest.approx(expected)
    assert optimizer.steps == len(steps)
    assert (values(named) - by_the_book(steps)).abs().max() < 1e-6


def test_torch_agrees_where_it_does_not_clip() -> None:
    named, plain = parameters(), parameters()
    optimizer = AdamW(named)
    s = AdamSettings(learning_rate=0.03, weight_decay=0.1)
    theirs = torch.optim.AdamW(
        [p for _, p in plain], s.learning_rate, (s.beta1, s.beta2), s.eps, s.weight_decay
    )
    for seed in range(20):
        optimizer.step(gradients(seed), s)
        for (_, parameter), grad in zip(plain, gradients(seed), strict=True):
            parameter.grad = grad
        theirs.step()
    assert (values(named) - values(plain)).abs().max() < 1e-6


@pytest.mark.parametrize("eps", [1e-12, 0.0])
def test_zero_gradients_leave_fresh_weights_alone(eps: float) -> None:
    named = parameters()
    optimizer = AdamW(named)
    assert optimizer.step([torch.zeros(s) for s in SHAPES.values()], AdamSettings(eps=eps)) == 0
    assert torch.equal(values(named), values(parameters()))
    assert optimizer.steps == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(bad: float) -> None:
    named = parameters()
    optimizer = AdamW(named)
    optimizer.step(gradients(0), AdamSettings())
    before, state = values(named), optimizer.state()
    grads = gradients(1)
    grads[1][2] = bad
    with pytest.raises(GatewayError, match="no step was taken"):
        optimizer.step(grads, AdamSettings())
    assert torch.equal(values(named), before)
    assert_same(optimizer.state(), state)


def assert_same(one: OptimizerState, other: OptimizerState) -> None:
    assert one.step == other.step
    for mine, yours in ((one.exp_avg, other.exp_avg), (one.exp_avg_sq, other.exp_avg_sq)):
        assert mine.keys() == yours.keys()
        assert all(torch.equal(mine[name], yours[name]) for name in mine)


def test_state_is_a_copy_and_goes_on_exactly() -> None:
    named = parameters()
    optimizer = AdamW(named)
    for seed in range(3):
        optimizer.step(gradients(seed), AdamSettings())
    state, weights = optimizer.state(), values(named)
    optimizer.step(gradients(3), AdamSettings())
    assert state.step == 3

    again = parameters()
    with torch.no_grad():
        for (_, parameter), part in zip(
            again, weights.split([p.numel() for _, p in again]), strict=True
        ):
            parameter.copy_(part.view_as(parameter))
    resumed = AdamW(again)
    resumed.check_state(state)
    resumed.load_state(state)
    resumed.step(gradients(3), AdamSettings())
    assert torch.equal(values(again), values(named))
    assert_same(resumed.state(), optimizer.state())
    resumed.load_state(None)
    assert_same(resumed.state(), AdamW(parameters()).state())


def test_a_state_of_other_parameters_is_refused() -> None:
    optimizer = AdamW(parameters())
    good = optimizer.state()
    for bad in (
        replace(good, step=-1),
        replace(good, exp_avg={k: v for k, v in good.exp_avg.items() if k != "b"}),
        replace(good, exp_avg_sq=good.exp_avg_sq | {"d": torch.zeros(1)}),
        replace(good, exp_avg_sq=good.exp_avg_sq | {"b": torch.zeros(4)}),
    ):
        with pytest.raises(GatewayError) as caught:
            optimizer.check_state(bad)
        assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH
