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
    temperature: float = 1.0,
) -> Tensor:
    """What `tinkergate_kernels.linear_logprob` computes, in the dtype of `hidden`:

        logits = (hidden W^T + bias + scale (hidden A^T) B^T) / temperature
        logprobs[n, k] = logits[n, targets[n, k]] - log sum_v exp(logits[n, v])

    Needs memory for several arrays of N x V.
    """
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if lora is not None:
        a, b, scale = lora
        logits = logits + scale * ((hidden @ a.T) @ b.T)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    columns = targets if targets.ndim == 2 else targets[:, None]
    return logprobs.gather(1, columns).view(targets.shape)
