"""A pass over the vocabulary on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tinkergate_kernels.gpu import linear
from tinkergate_kernels.passes import Gradients, Needs, Rows, Scores, through_means


class GpuPass:
    """See `tinkergate_kernels.passes.Pass`. `keep_bytes` is not made use of: the probabilities are
    made again where they are needed, which costs a GPU less than the memory."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._needs = Needs(hidden=False, a=False, b=False, weight=False)
        self._mean_w: Tensor | None = None
        self._mean_b: Tensor | None = None
        self._logsumexp: Tensor | None = None

    def forward(self, needs: Needs, keep_bytes: int) -> Tensor:
        """See `Pass.forward`."""
        del keep_bytes
        rows = self._rows
        self._needs = needs
        # Under a softcap means are of no use: the gradient weighs each token by its slope.
        if rows.softcap is None and (needs.hidden or needs.a):
            found = linear.direction(
                rows.hidden,
                rows.weight,
                rows.targets,
                bias=rows.bias,
                lora=rows.lora,
                inv_temperature=rows.inverse_temperature,
            )
            self._mean_w, self._mean_b = found.mean_w, found.mean_b
            self._logsumexp = found.logsumexp
            return found.logprob
        scored = self.scores(entropy=False, topk=0)
        self._logsumexp = scored.logsumexp
        return scored.logprob

    def backward(self, upstream: Tensor) -> Gradients:
        """See `Pass.backward`."""
        rows, needs = self._rows, self._needs
        direct = rows.softcap is None
        made = Gradients()
        if direct and (needs.hidden or needs.a):
            made = through_means(rows, upstream, self._mean_w, self._mean_b, needs)
        left = linear.Needs(
            hidden=needs.hidden and not direct,
            a=needs.a and not direct,
            b=needs.b,
            weight=needs.weight,
        )
        if not any(left):
            return made
        assert self._logsumexp is not None
        again = linear.gradient(
            rows.hidden,
            rows.weight,
            rows.targets,
            upstream,
            self._logsumexp,
            needs=left,
            bias=rows.bias,
            lora=rows.lora,
            inv_temperature=rows.inverse_temperature,
            softcap=rows.softcap,
        )
        return Gradients(
            made.hidden if direct else again.hidden,
            made.a if direct else again.a,
            again.b,
            again.weight,
        )

    def scores(self, *, entropy: bool, topk: int) -> Scores:
        """See `Pass.scores`."""
        rows = self._rows
        sums, top = linear.partials_with_top(
            rows.hidden,
            rows.weight,
            rows.targets,
            topk,
            bias=rows.bias,
            lora=rows.lora,
            inv_temperature=rows.inverse_temperature,
            softcap=rows.softcap,
        )
        found = linear.merge(sums)
        logprobs = (top.z - found.logsumexp[:, None]).clamp_(max=0)
        return Scores(
            found.logprob,
            found.logsumexp,
            found.entropy if entropy else None,
            top.ids.to(torch.int64),
            logprobs,
        )
