"""Log-probabilities of tokens straight from hidden states, without the logits.

The logits of N positions over a vocabulary of V tokens are the largest array of a training step,
and are needed only for their log-sum-exp and a few entries. Here they exist one tile at a time.

Forward, for each tile of logits z (rows n, tokens v): a running maximum m[n] and a running sum
s[n] of exp(z - m) give the log-sum-exp, as in online softmax. When gradients are wanted, the mean
of the unembedding under the prediction, E[n] = sum_v p[n, v] W[v], is accumulated beside it.
With it the backward is elementwise, because for a frozen W

    d logprob[n, k] / d hidden[n] = (W[targets[n, k]] - E[n]) / T

does not depend on what comes from above: two products of N x D x V in all, and no third.
Only the gradient of a low-rank B on the unembedding needs the probabilities once more; the
forward keeps their tiles while they fit `Tiling.keep_bytes`, else the backward makes them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinkergate_kernels.arguments import Lora, Tiling, check_linear
from tinkergate_kernels.tiles import Head, OnlineSoftmax, exponentials, pick, row_spans

__all__ = ["Lora", "Tiling", "linear_logprob"]


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | tuple[Tensor, Tensor, float] | None = None,
    temperature: float = 1.0,
    tiling: Tiling | None = None,
) -> Tensor:
    """The log-probabilities in nats, float32, shaped like `targets`, of

        log_softmax((hidden W^T + bias + scale (hidden A^T) B^T) / temperature)

    hidden: [N, D] floating. weight: [V, D] floating, frozen. targets: int64 [N] or [N, K], token
    ids. bias: [V], frozen. lora: (A [r, D], B [V, r], scale). Computed in float32 whatever the
    dtypes are. Differentiable once in `hidden`, A and B, for any gradient from above.

    Takes memory for one tile of logits, and with gradients for N x (D + r) floats and at most
    `tiling.keep_bytes` of probabilities. Raises ValueError, before any work, if shapes, dtypes or
    devices do not fit, a target is not in [0, V), or weight or bias would need a gradient.
    """
    lora = None if lora is None else Lora(*lora)
    check_linear(hidden, weight, targets, bias, lora, temperature)
    a, b, scale = lora if lora is not None else (None, None, 0.0)
    columns = targets if targets.ndim == 2 else targets[:, None]
    logprobs: Tensor = _LinearLogprob.apply(
        hidden,
        a,
        b,
        weight,
        bias,
        columns,
        scale,
        1 / temperature,
        tiling or Tiling(),
        torch.is_grad_enabled(),
    )
    return logprobs.view(targets.shape)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        inv_temperature: float,
        tiling: Tiling,
        grad_enabled: bool,
    ) -> Tensor:
        needs_h, needs_a, needs_b = (grad_enabled and n for n in ctx.needs_input_grad[:3])
        mean_b = b is not None and (needs_h or needs_a)
        head = Head(weight, bias, a, b, scale, inv_temperature, tiling)
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        softmax = OnlineSoftmax(hidden.shape[0], head, mean_w=needs_h, mean_b=mean_b)
        kept: list[Tensor] = []
        budget = tiling.keep_bytes if needs_b else 0
        for place in row_spans(hidden.shape[0], tiling):
            rows = hidden[place].float()
            low = head.low_rank(rows)
            tile_bytes = 4 * rows.shape[0] * weight.shape[0]
            keep = tile_bytes <= budget
            # After the first that does not fit none is kept: the kept ones are the first ones.
            budget = budget - tile_bytes if keep else 0
            for span in head.spans():
                tile = head.tile(rows, low, span, keep)
                pick(tile, span, targets[place], logprobs[place])
                softmax.add(tile, place, span)
                if keep:
                    kept += [tile, softmax.maximum[place].clone()]
        softmax.finish(logprobs)
        if needs_h or needs_a or needs_b:
            statistics = (softmax.maximum, softmax.sum, softmax.mean_w, softmax.mean_b)
            ctx.save_for_backward(hidden, a, b, weight, bias, targets, *statistics, *kept)
            ctx.settings = (scale, inv_temperature, tiling)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, a, b, weight, bias, targets, maximum, total, mean_w, mean_b, *kept = (
            ctx.saved_tensors
        )
        scale, inv_temperature, tiling = ctx.settings
        needs_h, needs_a, needs_b = ctx.needs_input_grad[:3]
        upstream = upstream.float()
        row_sum = upstream.sum(dim=1)
        grad_h = grad_a = grad_b = None
        if needs_h:
            grad_h = _pull(weight, targets, upstream, row_sum, mean_w).mul_(inv_temperature)
        if a is not None and (needs_h or needs_a):
            pull_b = _pull(b, targets, upstream, row_sum, mean_b).mul_(scale * inv_temperature)
            if grad_h is not None:
                grad_h.addmm_(pull_b, a.float())
            if needs_a:
                grad_a = (pull_b.T @ hidden.float()).to(a.dtype)
        if needs_b:
            head = Head(weight, bias, a, b, scale, inv_temperature, tiling)
            share = row_sum / total
            grad_b = _grad_b(head, hidden, targets, upstream, share, maximum, kept)
            grad_b = grad_b.mul_(scale * inv_temperature).to(b.dtype)
        if grad_h is not None:
            grad_h = grad_h.to(hidden.dtype)
        return grad_h, grad_a, grad_b, *([None] * 7)


def _pull(
    table: Tensor, targets: Tensor, upstream: Tensor, row_sum: Tensor, mean: Tensor | None
) -> Tensor:
    """sum_k upstream[n, k] table[targets[n, k]] - row_sum[n] mean[n]: float32 [N, width]."""
    pull = upstream.new_zeros(upstream.shape[0], table.shape[1])
    if mean is not None:
        pull.addcmul_(row_sum[:, None], mean, value=-1)
    for k in range(targets.shape[1]):
        pull.addcmul_(upstream[:, k, None], table[targets[:, k]].float())
    return pull


def _grad_b(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    upstream: Tensor,
    share: Tensor,
    maximum: Tensor,
    kept: list[Tensor],
) -> Tensor:
    """dz^T (hidden A^T) [V, r] in float32, where for exponentials e of the logits less maximum[n]

        dz[n, v] = sum_k upstream[n, k] [v = targets[n, k]] - share[n] e[n, v]

    `kept` holds the exponentials' tiles of the first rows, each followed by the maximum [R] that
    it stands relative to; those of other rows are made again.
    """
    assert head.b is not None
    grad = torch.zeros(head.b.shape, dtype=torch.float32, device=hidden.device)
    remembered = iter(kept)
    for place in row_spans(hidden.shape[0], head.tiling):
        rows = hidden[place].float()
        low = head.low_rank(rows)
        assert low is not None
        factor = low * share[place, None]
        for span in head.spans():
            tile = next(remembered, None)
            if tile is None:
                tile = head.tile(rows, low, span, keep=False)
                exponentials(tile.sub_(maximum[place, None]), head.inv_temperature)
                grad[span].addmm_(tile.T, factor, alpha=-1)
            else:
                # The small side takes in that the maximum has risen since.
                rise = exponentials(next(remembered) - maximum[place], head.inv_temperature)
                grad[span].addmm_(tile.T, factor * rise[:, None], alpha=-1)
        for k in range(targets.shape[1]):
            grad.index_add_(0, targets[place, k], upstream[place, k, None] * low)
    return grad
