"""Log-probabilities from hidden states, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from tinkergate_kernels.arguments import Lora


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """What `tinkergate_kernels.linear_logprob` computes, in the dtype of `hidden`:

        x = hidden W^T + bias + scale (hidden A^T) B^T
        z = softcap tanh(x / softcap) / temperature
        logprobs[n, k] = z[n, targets[n, k]] - log sum_v exp(z[n, v]), and 0 for ignored targets

    Needs memory for several arrays of N x V.
    """
    logprobs = torch.log_softmax(linear_logits(hidden, weight, bias, lora, temperature, softcap), 1)
    columns = targets if targets.ndim == 2 else targets[:, None]
    inside = (columns >= 0) & (columns < len(weight))
    picked = logprobs.gather(1, columns.clamp(0, len(weight) - 1))
    return picked.where(inside, 0.0).view(targets.shape)


def linear_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The logits z [N, V] of `linear_logprob`, in the dtype of `hidden`."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if lora is not None:
        a, b, scale = lora
        logits = logits + scale * ((hidden @ a.T) @ b.T)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)
