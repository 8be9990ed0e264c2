"""One pass over the vocabulary for N rows, and the gradients that follow from it, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.cpu import backward, linear
from tinkergate_kernels.cpu.head import Head
from tinkergate_kernels.cpu.products import products_for

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Of the states [N, D], A [r, D], B [V, r] and the unembedding [V, D], float32."""


class Pass:
    """N rows: states [N, D], unembedding [V, D], targets int64 [N, K], bias [V], inverse
    temperatures float32 [N]. Arguments are checked already; nothing here is tracked by autograd."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        lora: Lora | None,
        inverse_temperature: Tensor,
        softcap: float | None,
    ) -> None:
        self._hidden = hidden
        self._targets = targets
        self._inverse = inverse_temperature
        products = products_for(weight.shape[1], _factors(hidden, weight, lora))
        self._head = Head(weight, bias, lora, softcap, products)
        self._found: linear.Softmax | None = None

    def forward(self, *, mean_w: bool, mean_b: bool, keep_bytes: int) -> Tensor:
        """Logprobs, float32 [N, K]; remembers what `backward` will need for the gradients of the
        states (`mean_w`), of A (`mean_b`) and of B (`keep_bytes`)."""
        head = self._head
        # Under a softcap the mean is of no use: the gradient weighs each token by its slope.
        direct = head.softcap is None
        wanted = linear.Wanted(
            mean_w=mean_w and direct,
            mean_b=mean_b and direct and head.lora is not None,
            keep_bytes=keep_bytes if direct else 0,
        )
        self._found = self._softmax(wanted)
        return self._found.logprob

    def scores(
        self, *, entropy: bool, topk: int, shape: torch.Size
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Logprobs in `shape`, log-sum-exp, entropy, and the ids and logprobs of the likeliest."""
        found = self._softmax(linear.Wanted(entropy=entropy, topk=topk))
        count = len(self._hidden)
        ids = torch.empty(count, 0, dtype=torch.int64)
        logprobs = torch.empty(count, 0)
        if found.best is not None:
            ids = found.best.ids
            logprobs = found.best.values - found.maximum[:, None]
            logprobs.mul_((found.scale * linear.LN_2)[:, None])
            logprobs.sub_(found.total.log()[:, None])
        return found.logprob.view(shape), found.logsumexp, found.entropy, ids, logprobs

    def _softmax(self, wanted: linear.Wanted) -> linear.Softmax:
        return linear.softmax(self._head, self._hidden, self._targets, self._inverse, wanted)

    def backward(
        self, upstream: Tensor, *, hidden: bool, a: bool, b: bool, weight: bool
    ) -> _Gradients:
        """Gradients of sum(upstream * logprobs) for float32 [N, K]; None for what is not asked."""
        assert self._found is not None
        found, head = self._found, self._head
        inside = (self._targets >= 0) & (self._targets < len(head.weight))
        upstream = upstream * inside
        targets = self._targets.clamp(0, len(head.weight) - 1)
        states = hidden or a
        direct = head.softcap is None
        made = backward.Gradients()
        if b or weight or (states and not direct):
            asked = backward.Asked(hidden=states and not direct, weight=weight, b=b)
            made = backward.gradients(
                head, self._hidden, self._targets, self._inverse, upstream, found, asked
            )
        of_hidden, of_low = made.hidden, made.low
        if states and direct:
            row_sum = upstream.sum(dim=1)
            if hidden:
                of_hidden = _pull(head.weight, targets, upstream, row_sum, found.mean_w)
                of_hidden.mul_(self._inverse[:, None])
            if head.lora is not None:
                of_low = _pull(head.lora.b, targets, upstream, row_sum, found.mean_b)
                of_low.mul_(self._inverse[:, None])
        of_a = None
        if of_low is not None and head.lora is not None:
            scaled = of_low.mul_(head.lora.scale)
            if of_hidden is not None:
                of_hidden.addmm_(scaled, head.lora.a.float())
            if a:
                of_a = scaled.T @ self._hidden.float()
        return of_hidden if hidden else None, of_a, made.b, made.weight


def _factors(hidden: Tensor, weight: Tensor, lora: Lora | None) -> torch.dtype:
    """The type in which products lose nothing: that of both, else float32. With a LoRA addition
    too, since its own products are of float32 numbers."""
    return hidden.dtype if lora is None and hidden.dtype == weight.dtype else torch.float32


def _pull(
    table: Tensor, targets: Tensor, upstream: Tensor, row_sum: Tensor, mean: Tensor | None
) -> Tensor:
    """sum_k upstream[n, k] table[targets[n, k]] - row_sum[n] mean[n]: float32 [N, width]."""
    assert mean is not None
    pull = mean * -row_sum[:, None]
    for k in range(targets.shape[1]):
        pull.addcmul_(upstream[:, k, None], table[targets[:, k]].float())
    return pull
