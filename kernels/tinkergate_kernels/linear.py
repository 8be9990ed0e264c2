"""Log-probabilities of tokens straight from hidden states, without the logits.

The logits of N positions over a vocabulary of V tokens are the largest array of a training step,
and are needed only for their log-sum-exp and a few entries. Here they exist one tile at a time.

Forward, for each tile of logits z (rows n, tokens v): a running maximum m[n] and a running sum
s[n] of exp(z - m) give the log-sum-exp, as in online softmax. When gradients are wanted, the mean
of the unembedding under the prediction, E[n] = sum_v p[n, v] W[v], is accumulated beside it.
With it the backward is elementwise, because for a frozen W

    d logprob[n, k] / d hidden[n] = (W[targets[n, k]] - E[n]) / T

does not depend on what comes from above: two products of N x D x V in all, and no third.
Only the gradients of a low-rank B on the unembedding and of W itself need the probabilities once
more, and so do all under a softcap. For B the forward keeps them while they fit `keep_bytes`, else
the backward makes them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinkergate_kernels.arguments import Lora, check_linear, inverse_of
from tinkergate_kernels.passes import Pass

__all__ = ["KEEP_BYTES", "LinearScores", "Lora", "linear_logprob", "linear_scores"]

KEEP_BYTES = 128 << 20
"""How many bytes of probabilities a forward may keep for the gradient of B."""


class LinearScores(NamedTuple):
    """What `linear_scores` answers: float32, nats."""

    logprob: Tensor
    """Shaped like the targets; 0 for a target that is no token."""
    logsumexp: Tensor
    """[N], of the logits after softcap and temperature."""
    entropy: Tensor | None
    """[N], of the prediction; None if not asked for."""
    topk_ids: Tensor
    """int64 [N, k]: the likeliest tokens, likeliest first, equals by lower id."""
    topk_logprobs: Tensor
    """[N, k]."""


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | tuple[Tensor, Tensor, float] | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    keep_bytes: int = KEEP_BYTES,
) -> Tensor:
    """The log-probabilities in nats, float32, shaped like `targets`, of

        x = hidden W^T + bias + scale (hidden A^T) B^T
        log_softmax(cap(x) / temperature),   cap(x) = softcap tanh(x / softcap), or x

    hidden: [N, D] floating. weight: [V, D] floating. targets: int64 [N] or [N, K], token ids; for
    one outside [0, V), such as -100, the answer is 0 and no gradient, and a row of such alone costs
    nothing. bias: [V], frozen. lora: (A [r, D], B [V, r], scale). temperature: one number, or
    float [N] for the rows. Differentiable once in `hidden`, `weight`, A and B, for any gradient
    from above.

    Sums are float32 whatever the dtypes are. With half-precision states and unembedding, products
    of those are exact; the gradient of `hidden` is rounded to their precision. On a CPU the bits of
    a row's answer do not depend on the rows beside it.

    Takes memory for a few tiles of logits, and with gradients for about N x (D + r) floats for each
    of four parts of the vocabulary and at most `keep_bytes` of probabilities. Raises ValueError,
    before any work, if shapes, dtypes or devices do not fit, or the bias would need a gradient.
    """
    lora = None if lora is None else Lora(*lora)
    check_linear(hidden, weight, targets, bias, lora, temperature, softcap)
    if keep_bytes < 0:
        raise ValueError(f"keep_bytes is {keep_bytes}; must not be negative")
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
        temperature,
        softcap,
        keep_bytes,
        torch.is_grad_enabled(),
    )
    return logprobs.view(targets.shape)


@torch.no_grad()
def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | tuple[Tensor, Tensor, float] | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    topk: int = 0,
) -> LinearScores:
    """The logprobs of `linear_logprob`, and in the same pass over the vocabulary the log-sum-exp,
    and where asked for the entropy -sum p log p and the `topk` likeliest tokens (as many as there
    are, if there are fewer). Without gradients; every row is read, whatever its targets are.
    Raises ValueError as `linear_logprob` does, and for a negative `topk`."""
    lora = None if lora is None else Lora(*lora)
    check_linear(hidden, weight, targets, bias, lora, temperature, softcap)
    if topk < 0:
        raise ValueError(f"topk is {topk}; must not be negative")
    columns = targets if targets.ndim == 2 else targets[:, None]
    work = Pass(hidden, weight, columns, bias, lora, inverse_of(temperature, hidden), softcap)
    return LinearScores(*work.scores(entropy=entropy, topk=topk, shape=targets.shape))


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
        temperature: float | Tensor,
        softcap: float | None,
        keep_bytes: int,
        grad_enabled: bool,
    ) -> Tensor:
        needs_h, needs_a, needs_b, needs_w = (
            grad_enabled and needed for needed in ctx.needs_input_grad[:4]
        )
        lora = None if a is None or b is None else Lora(a.detach(), b.detach(), scale)
        rows = _scored(targets, len(weight))
        work = Pass(
            hidden.detach() if rows is None else hidden.detach()[rows],
            weight.detach(),
            targets if rows is None else targets[rows],
            bias,
            lora,
            inverse_of(temperature, hidden)[slice(None) if rows is None else rows],
            softcap,
        )
        logprobs = work.forward(
            mean_w=needs_h, mean_b=needs_h or needs_a, keep_bytes=keep_bytes if needs_b else 0
        )
        if needs_h or needs_a or needs_b or needs_w:
            # The pass holds them too; these notice changes in place before the backward.
            ctx.save_for_backward(hidden, a, b, weight, bias, targets)
            ctx.work, ctx.rows = work, rows
            ctx.dtypes = [None if t is None else t.dtype for t in (hidden, a, b, weight)]
            ctx.count = len(hidden)
        if rows is None:
            return logprobs
        return logprobs.new_zeros(targets.shape).index_copy_(0, rows, logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.saved_tensors is not None
        work, rows = ctx.work, ctx.rows
        needs_h, needs_a, needs_b, needs_w = ctx.needs_input_grad[:4]
        found = work.backward(
            upstream.float() if rows is None else upstream.float()[rows],
            hidden=needs_h,
            a=needs_a,
            b=needs_b,
            weight=needs_w,
        )
        if needs_h and rows is not None:
            whole = found[0].new_zeros(ctx.count, found[0].shape[1])
            found = (whole.index_copy_(0, rows, found[0]), *found[1:])
        typed = (
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(found, ctx.dtypes, strict=True)
        )
        return *typed, *([None] * 7)


def _scored(targets: Tensor, vocab: int) -> Tensor | None:
    """The rows that have a target which is a token, int64; None if all have."""
    scored = ((targets >= 0) & (targets < vocab)).any(dim=1)
    return None if scored.all() else scored.nonzero().view(-1)
