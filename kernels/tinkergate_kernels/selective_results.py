"""What the selective log-softmax answers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SelectiveScores(NamedTuple):
    """What the logits of N rows say. All float32, or the dtype of the logits in the reference."""

    logprob: Tensor
    """Shaped like the targets: log p(target) in nats; 0 where the target is ignored."""
    logsumexp: Tensor
    """[N]: of the logits after bias, softcap and temperature; 0 for a row without a target."""
    entropy: Tensor | None
    """[N], in nats; 0 for a row without a target. None unless asked for."""
    topk_ids: Tensor | None
    """[N, k] int64: the most likely tokens, by falling logprob, then by rising id; -1 for a row
    without a target. None unless asked for."""
    topk_logprobs: Tensor | None
    """[N, k]; 0 for a row without a target."""


class Sums(NamedTuple):
    """What the kernels' forward gives: results, and what their backward starts from. Float32."""

    logprob: Tensor
    """[N, K]."""
    logsumexp: Tensor
    """[N]."""
    entropy: Tensor | None
    """[N]."""
    maximum: Tensor
    """[N]: the largest logit after bias and softcap, before the temperature."""
    log_total: Tensor
    """[N]: log2 of sum_v exp((x[v] - maximum) / temperature)."""
    topk_ids: Tensor | None
    topk_logprobs: Tensor | None
