"""The other ways to compute logprobs: from states and unembedding, and from logits.

Each takes (states [N, D], unembedding [V, D], tokens [N]) or (logits [N, V], tokens [N]), and gives
logprobs [N] that can be differentiated.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Way = Callable[..., Tensor]


def from_states(device: torch.device) -> dict[str, Way]:
    """Those there are, by name."""
    ways: dict[str, Way] = {
        "log_softmax + gather": _states_plain,
        "F.cross_entropy": _states_cross_entropy,
        "torch.compile": torch.compile(_states_plain),
    }
    if _installed("cut_cross_entropy"):
        ways["cut-cross-entropy"] = _cut("cce" if device.type == "cuda" else "torch_compile")
    if _installed("liger_kernel"):
        ways["liger-kernel"] = _liger
    return ways


def from_logits() -> dict[str, Way]:
    """Those there are, by name."""
    return {
        "log_softmax + gather": _plain,
        "F.cross_entropy": _cross_entropy,
        "torch.compile": torch.compile(_plain),
    }


def _plain(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(logits, targets, reduction="none")


def _states_plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _plain(hidden @ weight.T, targets)


def _states_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _cross_entropy(hidden @ weight.T, targets)


def _cut(implementation: str) -> Way:
    def way(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        cut: Any = importlib.import_module("cut_cross_entropy")
        loss: Tensor = cut.linear_cross_entropy(
            hidden, weight, targets, reduction="none", impl=implementation
        )
        return -loss

    return way


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    module: Any = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    function = module.LigerFusedLinearScaledCrossEntropyFunction
    loss: Tensor = function.apply(hidden, weight, targets, 1.0)
    return -loss


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
