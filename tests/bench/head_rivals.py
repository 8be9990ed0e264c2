"""What `tests/bench/head.py` compares: each computes next-token logprobs [N] from states [N, D],
an unembedding [V, D] and tokens [N], differentiable in the states. The first one is ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear_cross_entropy

from tinkergate_kernels import linear_logprob

_CHUNK = 128


@dataclass(frozen=True)
class Rival:
    """One way to compute logprobs."""

    name: str
    logprobs: Callable[[Tensor, Tensor, Tensor], Tensor]


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logprobs = torch.log_softmax(hidden @ weight.T, dim=1)
    return logprobs.gather(1, targets[:, None])[:, 0]


def _cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(hidden @ weight.T, targets, reduction="none")


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    rows = zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True)
    return torch.cat([_plain(states, weight, chosen) for states, chosen in rows])


def _torch_linear(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from torch.nn import LinearCrossEntropyOptions

    return -linear_cross_entropy(
        hidden, weight, targets, reduction="none", options=LinearCrossEntropyOptions()
    )


def _cut(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    loss = cut_cross_entropy(hidden, weight, targets, reduction="none", impl="torch_compile")
    assert isinstance(loss, Tensor)
    return -loss


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction,
    )

    loss = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets, 1.0)
    assert isinstance(loss, Tensor)
    return -loss


RIVALS = (
    Rival("ours: linear_logprob", linear_logprob),
    Rival("plain log_softmax + gather", _plain),
    Rival("F.cross_entropy", _cross_entropy),
    Rival(f"chunks of {_CHUNK} rows", _chunked),
    Rival("torch F.linear_cross_entropy", _torch_linear),
    Rival("cut-cross-entropy torch_compile", _cut),
    Rival("liger-kernel scaled CE fallback", _liger),
)
