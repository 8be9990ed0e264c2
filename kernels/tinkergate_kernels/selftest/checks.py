"""What a check is, and how errors are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tinkergate_kernels.dispatch import way_on

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Measure(NamedTuple):
    """One number, and what it must not exceed."""

    what: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.error <= self.bound


@dataclass(frozen=True)
class Case:
    """A computation on a device, and what is measured of it."""

    name: str
    run: Callable[[torch.device], Iterable[Measure]]


@dataclass(frozen=True)
class Bars:
    """What errors may be, for inputs of one dtype. Logits are up to about 45."""

    score: float
    """Of logprobs and log-sum-exps, in nats."""
    entropy: float
    """In nats."""
    gradient: float
    """Relative to the largest entry. Of half precision it is the rounding of what is stored."""


_BARS = {
    "fp32": Bars(score=1e-5, entropy=1e-5, gradient=5e-6),
    "bf16": Bars(score=2e-5, entropy=5e-5, gradient=5e-3),
    "fp16": Bars(score=2e-5, entropy=5e-5, gradient=5e-3),
}


def bars_of(dtype: str, device: torch.device) -> Bars:
    """What errors may be, of inputs of this dtype on a device. Plain PyTorch rounds whole logits
    and not their distances from the largest: it may be twice as far off."""
    bars = _BARS[dtype]
    if way_on(device) == "plain":
        return Bars(2 * bars.score, 2 * bars.entropy, bars.gradient)
    return bars


class Draw:
    """Random numbers, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Float32, on the CPU."""
        return torch.randn(*shape, generator=self._generator)

    def tokens(self, vocab: int, *shape: int) -> Tensor:
        """Int64 in [0, vocab), on the CPU."""
        return torch.randint(0, vocab, shape, generator=self._generator)


def absolute(found: Tensor, wanted: Tensor) -> float:
    """The largest error."""
    return float((found.detach().double().cpu() - wanted.detach()).abs().max())


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest error, over the largest entry wanted, or over 1 where all entries cancel out."""
    largest = float(wanted.detach().abs().max())
    return absolute(found, wanted) / (largest if largest > 1e-9 else 1.0)


def different(found: Tensor, wanted: Tensor) -> float:
    """How many entries differ in any bit."""
    return float((found.detach().cpu() != wanted.detach().cpu()).sum())
