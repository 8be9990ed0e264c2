"""The pass over the vocabulary on a CPU, in Triton and in plain PyTorch: the same answers to the
same questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tinkergate_kernels import Lora, reference
from tinkergate_kernels.cpu.linear_pass import CpuPass
from tinkergate_kernels.gpu.linear_pass import GpuPass
from tinkergate_kernels.passes import Needs, Pass, Rows
from tinkergate_kernels.plain.linear_pass import PlainPass

N, D, V, K, R = 21, 24, 300, 2, 3

PASSES: dict[str, Callable[[Rows], Pass]] = {"cpu": CpuPass, "gpu": GpuPass, "plain": PlainPass}


def rows(*, bias: bool, lora: bool, softcap: float | None) -> Rows:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    targets = torch.randint(V, (N, K), generator=draw)
    targets[3, 1] = -100
    return Rows(
        hidden=normal(N, D) * 2,
        weight=normal(V, D) / D**0.5,
        targets=targets,
        bias=normal(V) if bias else None,
        lora=Lora(normal(R, D) / D**0.5, normal(V, R) * 0.3, 1.3) if lora else None,
        inverse_temperature=torch.linspace(0.6, 1.5, N),
        softcap=softcap,
    )


def expected(given: Rows, upstream: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Logprobs and the gradients of states, A, B and W by autograd in float64."""
    hidden, weight = (x.double().requires_grad_() for x in (given.hidden, given.weight))
    lora = None
    if given.lora is not None:
        a, b = (x.double().requires_grad_() for x in given.lora[:2])
        lora = Lora(a, b, given.lora.scale)
    logprobs = reference.linear_logprob(
        hidden,
        weight,
        given.targets,
        bias=None if given.bias is None else given.bias.double(),
        lora=lora,
        temperature=1 / given.inverse_temperature.double(),
        softcap=given.softcap,
    )
    logprobs.backward(upstream.double())
    factors = (None, None) if lora is None else lora[:2]
    leaves = (hidden, *factors, weight)
    return logprobs.detach(), [None if leaf is None else leaf.grad for leaf in leaves]


@pytest.mark.parametrize("device", PASSES)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_logprobs_and_all_gradients(
    device: str, softcap: float | None, lora: bool, bias: bool
) -> None:
    given = rows(bias=bias, lora=lora, softcap=softcap)
    upstream = torch.randn(N, K, generator=torch.Generator().manual_seed(1))
    logprobs, gradients = expected(given, upstream)
    work = PASSES[device](given)
    needs = Needs(hidden=True, a=lora, b=lora, weight=True)
    found = work.forward(needs, keep_bytes=1 << 20)
    assert (found - logprobs).abs().max() <= 1e-5
    for gradient, wanted in zip(work.backward(upstream), gradients, strict=True):
        if wanted is None:
            assert gradient is None
            continue
        assert gradient is not None
        assert (gradient - wanted).abs().max() / wanted.abs().max() <= 5e-6


@pytest.mark.parametrize("device", PASSES)
@pytest.mark.parametrize("needed", ["hidden", "a", "b", "weight"])
def test_only_what_is_needed_is_computed(device: str, needed: str) -> None:
    given = rows(bias=False, lora=True, softcap=None)
    upstream = torch.ones(N, K)
    _, gradients = expected(given, upstream)
    work = PASSES[device](given)
    none: dict[str, Any] = dict.fromkeys(Needs._fields, False)
    work.forward(Needs(**(none | {needed: True})), keep_bytes=0)
    found = work.backward(upstream)._asdict()
    wanted = gradients[Needs._fields.index(needed)]
    assert wanted is not None
    assert (found.pop(needed) - wanted).abs().max() / wanted.abs().max() <= 5e-6
    assert set(found.values()) == {None}


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_all_tell_the_same_scores(softcap: float | None) -> None:
    given = rows(bias=True, lora=True, softcap=softcap)
    cpu, *others = (make(given).scores(entropy=True, topk=5) for make in PASSES.values())
    for other in others:
        assert torch.equal(cpu.topk_ids, other.topk_ids)
        for name in ("logprob", "logsumexp", "entropy", "topk_logprobs"):
            assert (getattr(cpu, name) - getattr(other, name)).abs().max() <= 1e-5
