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
from tinkergate_kernels.partials import Partials
from tinkergate_kernels.passes import (
    Needs,
    Rows,
    Scores,
    partials_over,
    pass_over,
    picked,
    spread,
    with_targets,
)

__all__ = [
    "KEEP_BYTES",
    "SPLIT",
    "LinearScores",
    "Lora",
    "linear_logprob",
    "linear_partials",
    "linear_scores",
]

KEEP_BYTES = 128 << 20
"""How many bytes of probabilities a forward may keep for the gradient of B."""


SPLIT = 4096
"""How many tokens of the vocabulary `linear_partials` sums up together."""


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
    one outside [0, V), such as -100, the answer is 0 and no gradient, and a row of such alone is
    not read. bias: [V], frozen. lora: (A [r, D], B [V, r], scale). temperature: one number, or
    float [N] for the rows. Differentiable once in `hidden`, `weight`, A and B, for any gradient
    from above.

    Sums are float32 whatever the dtypes are; on a CPU the logits of targets and of the likeliest
    tokens are summed in float64, so that their roundings do not show. With half-precision states
    and unembedding, products of those are exact; the gradient of `hidden` is rounded to their
    precision. On a CPU the bits of a row's answer do not depend on the rows beside it; while
    bfloat16 states run with a bfloat16 unembedding there, float32 products of other threads are
    rounded to bfloat16 factors.

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
    are, if there are fewer). Without gradients. A row without a target that is a token is not read:
    its answers are 0, and its likeliest tokens -1.

    Raises ValueError as `linear_logprob` does, and for a negative `topk`."""
    lora = None if lora is None else Lora(*lora)
    check_linear(hidden, weight, targets, bias, lora, temperature, softcap)
    if topk < 0:
        raise ValueError(f"topk is {topk}; must not be negative")
    columns = targets if targets.ndim == 2 else targets[:, None]
    rows = Rows(hidden, weight, columns, bias, lora, inverse_of(temperature, hidden), softcap)
    places = with_targets(rows)
    found = pass_over(rows if places is None else picked(rows, places)).scores(
        entropy=entropy, topk=min(topk, len(weight))
    )
    if places is not None:
        count = len(hidden)
        found = Scores(
            spread(found.logprob, places, count),
            spread(found.logsumexp, places, count),
            None if found.entropy is None else spread(found.entropy, places, count),
            spread(found.topk_ids, places, count, -1),
            spread(found.topk_logprobs, places, count),
        )
    return LinearScores(found.logprob.view(targets.shape), *found[1:])


@torch.no_grad()
def linear_partials(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_start: int = 0,
    vocab_total: int | None = None,
    bias: Tensor | None = None,
    lora: Lora | tuple[Tensor, Tensor, float] | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    split: int = SPLIT,
) -> Partials:
    """What the tokens of `weight` say of the softmax over a vocabulary of which they are a part:
    those from `vocab_start` on, of `vocab_total` (by default the last ones). Targets count in the
    whole vocabulary; bias, and B of the LoRA, are of the same tokens as `weight`. The rest is as
    for `linear_logprob`.

    Summed up in splits of `split` tokens. Put the partials of all parts together with
    `concatenated` and merge them with `merge`: the bits of the answer depend on where the splits
    are cut alone, so parts that hold a multiple of `split` tokens (the last one any number) give
    the same, however many there are.

    Raises ValueError as `linear_logprob` does, and for splits and places that make no sense.
    """
    lora = None if lora is None else Lora(*lora)
    check_linear(hidden, weight, targets, bias, lora, temperature, softcap)
    total = vocab_start + len(weight) if vocab_total is None else vocab_total
    if split < 1:
        raise ValueError(f"split is {split}; must be positive")
    if not 0 <= vocab_start <= total - len(weight):
        raise ValueError(
            f"vocab_start is {vocab_start}; must be from 0 to {total - len(weight)}, so that "
            f"{len(weight)} tokens are there of {total}"
        )
    columns = targets if targets.ndim == 2 else targets[:, None]
    rows = Rows(hidden, weight, columns, bias, lora, inverse_of(temperature, hidden), softcap)
    return partials_over(rows, vocab_start, total, split)


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
        needs = Needs(*(grad_enabled and needed for needed in ctx.needs_input_grad[:4]))
        lora = None if a is None or b is None else Lora(a.detach(), b.detach(), scale)
        rows = Rows(
            hidden.detach(),
            weight.detach(),
            targets,
            bias,
            lora,
            inverse_of(temperature, hidden),
            softcap,
        )
        places = with_targets(rows)
        work = pass_over(rows if places is None else picked(rows, places))
        logprobs = work.forward(needs, keep_bytes)
        if any(needs):
            # The pass holds them too; these notice changes in place before the backward.
            ctx.save_for_backward(hidden, a, b, weight, bias, targets)
            ctx.work, ctx.places, ctx.count = work, places, len(hidden)
        return logprobs if places is None else spread(logprobs, places, len(hidden))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, places = ctx.saved_tensors[:4], ctx.places
        upstream = upstream.float()
        found = ctx.work.backward(upstream if places is None else upstream[places])
        if found.hidden is not None and places is not None:
            found = found._replace(hidden=spread(found.hidden, places, ctx.count))
        typed = (
            None if gradient is None else gradient.to(given.dtype)
            for gradient, given in zip(found, inputs, strict=True)
        )
        return *typed, *([None] * 7)
