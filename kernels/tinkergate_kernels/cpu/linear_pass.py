"""A pass over the vocabulary on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tinkergate_kernels.cpu import backward, linear
from tinkergate_kernels.cpu.head import Head
from tinkergate_kernels.cpu.products import products_for
from tinkergate_kernels.partials import Partials
from tinkergate_kernels.passes import Gradients, Needs, Rows, Scores, picked, through_means


class CpuPass:
    """See `tinkergate_kernels.passes.Pass`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._head = head_of(rows)
        self._needs = Needs(hidden=False, a=False, b=False, weight=False)
        self._found: linear.Softmax | None = None

    def forward(self, needs: Needs, keep_bytes: int) -> Tensor:
        """See `Pass.forward`."""
        self._needs = needs
        # Under a softcap means are of no use: the gradient weighs each token by its slope.
        direct = self._head.softcap is None
        lora = self._head.lora is not None
        self._found = self._softmax(
            linear.Wanted(
                mean_w=direct and needs.hidden,
                mean_b=direct and lora and (needs.hidden or needs.a),
                keep_bytes=keep_bytes if direct and needs.b else 0,
            )
        )
        return self._found.logprob

    def backward(self, upstream: Tensor) -> Gradients:
        """See `Pass.backward`."""
        rows, needs, found = self._rows, self._needs, self._found
        assert found is not None
        states = needs.hidden or needs.a
        made = Gradients()
        if states and self._head.softcap is None:
            made = through_means(rows, upstream, found.mean_w, found.mean_b, needs)
            states = False
        if not (states or needs.b or needs.weight):
            return made
        again = backward.gradients(
            self._head,
            rows.hidden,
            rows.targets,
            rows.inverse_temperature,
            upstream * rows.inside,
            found,
            backward.Asked(hidden=states, weight=needs.weight, b=needs.b),
        )
        if states:
            hidden, a = again.hidden, None
            if again.low is not None and rows.lora is not None:
                low = again.low.mul_(rows.lora.scale)
                assert hidden is not None
                hidden.addmm_(low, rows.lora.a.float())
                a = low.T @ rows.hidden.float() if needs.a else None
            made = Gradients(hidden=hidden if needs.hidden else None, a=a)
        return made._replace(b=again.b, weight=again.weight)

    def scores(self, *, entropy: bool, topk: int) -> Scores:
        """See `Pass.scores`."""
        found = self._softmax(linear.Wanted(entropy=entropy, topk=topk))
        ids, logprobs = found.topk_ids, found.topk_logprobs
        if ids is None or logprobs is None:
            count = len(found.maximum)
            ids, logprobs = torch.empty(count, 0, dtype=torch.int64), torch.empty(count, 0)
        return Scores(found.logprob, found.logsumexp, found.entropy, ids, logprobs)

    def _softmax(self, wanted: linear.Wanted) -> linear.Softmax:
        rows = self._rows
        return linear.softmax(
            self._head, rows.hidden, rows.targets, rows.inverse_temperature, wanted
        )


def partials(rows: Rows, vocab_start: int, vocab_total: int, split: int) -> Partials:
    """See `tinkergate_kernels.linear.linear_partials`. A row without a target in the whole
    vocabulary is as if there were no tokens."""
    count, k = rows.targets.shape
    scored = (rows.targets >= 0) & (rows.targets < vocab_total)
    places = scored.any(dim=1).nonzero().view(-1)
    read = picked(rows, places)
    found = linear.partials_of(
        head_of(rows), read.hidden, read.targets - vocab_start, read.inverse_temperature, split
    )
    splits = len(found.maximum)
    whole = Partials(
        torch.full((splits, count), torch.finfo(torch.float32).min),
        torch.zeros(splits, count),
        torch.zeros(splits, count),
        torch.full((splits, count, k), float("-inf")),
    )
    for of_all, of_read in zip(whole, found, strict=True):
        of_all[:, places] = of_read
    return whole


def head_of(rows: Rows) -> Head:
    """What makes tiles of the rows' logits."""
    # The type in which products lose nothing. Those of a LoRA are of float32 numbers.
    same = rows.lora is None and rows.hidden.dtype == rows.weight.dtype
    products = products_for(rows.weight.shape[1], rows.hidden.dtype if same else torch.float32)
    return Head(rows.weight, rows.bias, rows.lora, rows.softcap, products)
