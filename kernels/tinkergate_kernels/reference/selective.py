"""Log-probabilities from logits, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from tinkergate_kernels.selective_results import SelectiveScores


def selective_scores(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    entropy: bool = True,
    topk: int = 0,
) -> SelectiveScores:
    """What `tinkergate_kernels.selective_scores` computes, in the dtype of `logits`. Needs memory
    for several arrays of N x V."""
    vocab = logits.shape[1]
    columns = targets if targets.ndim == 2 else targets[:, None]
    scored = (columns >= 0) & (columns < vocab)
    live = scored.any(dim=1)
    x = logits if bias is None else logits + bias
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    z = x / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)
    # Rows without a target count for nothing, whatever stands in them.
    z = torch.where(live[:, None], z, z.new_zeros(()))
    logprobs = torch.log_softmax(z, dim=-1)
    picked = logprobs.gather(1, columns.clamp(0, vocab - 1))
    picked = torch.where(scored, picked, z.new_zeros(()))
    # Less the largest first: beside a large one, of which log-sum-exp has the rounding, its
    # gradient would be lost.
    largest = z.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(z.dtype).min)
    logsumexp = torch.where(live, largest[:, 0] + (z - largest).logsumexp(dim=-1), 0.0)
    spread = None
    if entropy:
        p = logprobs.exp()
        terms = p * logprobs.masked_fill(p == 0, 0.0)
        spread = torch.where(live, -terms.sum(dim=-1), 0.0)
    ids = values = None
    if topk:
        # By the logits: those that differ may have equal logprobs.
        ids = z.detach().sort(dim=-1, descending=True, stable=True).indices
        values = logprobs.detach().gather(1, ids)
        ids = torch.where(live[:, None], ids[:, :topk], -1)
        values = torch.where(live[:, None], values[:, :topk], 0.0)
    return SelectiveScores(picked.view(targets.shape), logsumexp, spread, ids, values)
