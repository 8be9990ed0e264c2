"""One pass over the vocabulary for N rows, and the gradients that follow from it: what the public
functions ask of the device that their tensors lie on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.dispatch import way_on
from tinkergate_kernels.partials import Partials


class Rows(NamedTuple):
    """The arguments of a pass, checked already. Nothing here is tracked by autograd."""

    hidden: Tensor
    """[N, D]."""
    weight: Tensor
    """[V, D]."""
    targets: Tensor
    """int64 [N, K]; one in each row or more is a token."""
    bias: Tensor | None
    """[V]."""
    lora: Lora | None
    inverse_temperature: Tensor
    """Float32 [N]."""
    softcap: float | None

    @property
    def inside(self) -> Tensor:
        """Which targets are tokens, bool [N, K]."""
        return (self.targets >= 0) & (self.targets < len(self.weight))


class Scores(NamedTuple):
    """What a pass without gradients found. Float32, nats."""

    logprob: Tensor
    """[N, K]; 0 for targets that are no tokens."""
    logsumexp: Tensor
    """[N]."""
    entropy: Tensor | None
    """[N]."""
    topk_ids: Tensor
    """int64 [N, k]."""
    topk_logprobs: Tensor
    """[N, k]."""


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    a: bool
    b: bool
    weight: bool


class Gradients(NamedTuple):
    """Float32, each of the shape of what it is the gradient of; None where not wanted."""

    hidden: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    weight: Tensor | None = None


class Pass(Protocol):
    """A pass over N rows."""

    def forward(self, needs: Needs, keep_bytes: int) -> Tensor:
        """Logprobs, float32 [N, K]; remembers what `backward` will need."""

    def backward(self, upstream: Tensor) -> Gradients:
        """Gradients of sum(upstream * logprobs) for float32 [N, K]: those that `forward` was told
        of."""

    def scores(self, *, entropy: bool, topk: int) -> Scores:
        """Everything that one reading of the vocabulary tells, without gradients."""


def pass_over(rows: Rows) -> Pass:
    """A pass on the device that the rows lie on, in the way that is asked for."""
    match way_on(rows.hidden.device):
        case "plain":
            from tinkergate_kernels.plain.linear_pass import PlainPass

            return PlainPass(rows)
        case "cpu":
            from tinkergate_kernels.cpu.linear_pass import CpuPass

            return CpuPass(rows)
        case "gpu":
            from tinkergate_kernels.gpu.linear_pass import GpuPass

            return GpuPass(rows)


def partials_over(rows: Rows, vocab_start: int, vocab_total: int, split: int) -> Partials:
    """The partials of a part of the vocabulary; targets count in the whole of it."""
    way = way_on(rows.hidden.device)
    if way == "plain":
        from tinkergate_kernels.plain import linear_pass as plain

        return plain.partials(rows, vocab_start, vocab_total, split)
    if way == "cpu":
        from tinkergate_kernels.cpu import linear_pass as cpu

        return cpu.partials(rows, vocab_start, vocab_total, split)
    from tinkergate_kernels.gpu import linear

    return linear.partials(
        rows.hidden,
        rows.weight,
        rows.targets,
        bias=rows.bias,
        lora=rows.lora,
        inv_temperature=rows.inverse_temperature,
        softcap=rows.softcap,
        vocab_start=vocab_start,
        vocab_total=vocab_total,
        split=split,
    )


def through_means(
    rows: Rows, upstream: Tensor, mean_w: Tensor | None, mean_b: Tensor | None, needs: Needs
) -> Gradients:
    """The gradients of the states and of A from the means of W and B under the prediction:

        d/dhidden = (sum_k g[k] W[t_k] - (sum_k g[k]) mean_w) / T,   through B likewise

    upstream: float32 [N, K]. mean_w: [N, D], if the states' gradient is wanted; mean_b: [N, r], if
    there is a LoRA. Without a softcap."""
    upstream = upstream * rows.inside * rows.inverse_temperature[:, None]
    targets = rows.targets.clamp(0, len(rows.weight) - 1)
    hidden = a = None
    if needs.hidden:
        assert mean_w is not None
        hidden = _pull(rows.weight, targets, upstream, mean_w)
    if rows.lora is not None:
        assert mean_b is not None
        low = _pull(rows.lora.b, targets, upstream, mean_b).mul_(rows.lora.scale)
        if hidden is not None:
            hidden.addmm_(low, rows.lora.a.float())
        if needs.a:
            a = low.T @ rows.hidden.float()
    return Gradients(hidden=hidden, a=a)


def _pull(table: Tensor, targets: Tensor, upstream: Tensor, mean: Tensor) -> Tensor:
    """sum_k upstream[n, k] (table[targets[n, k]] - mean[n]): float32 [N, width]."""
    pull = mean * -upstream.sum(dim=1, keepdim=True)
    for k in range(targets.shape[1]):
        # Multiplied, then added: fused or not would depend on where a thread's share ends.
        pull += table[targets[:, k]].float().mul_(upstream[:, k, None])
    return pull


def picked(rows: Rows, places: Tensor) -> Rows:
    """Some of the rows: int64 [M]."""
    return rows._replace(
        hidden=rows.hidden.index_select(0, places),
        targets=rows.targets.index_select(0, places),
        inverse_temperature=rows.inverse_temperature.index_select(0, places),
    )


def spread(found: Tensor, places: Tensor, count: int, fill: float = 0) -> Tensor:
    """Answers of some rows among those of all `count`, which are `fill`."""
    whole = found.new_full((count, *found.shape[1:]), fill)
    return whole.index_copy_(0, places, found)


def with_targets(rows: Rows) -> Tensor | None:
    """The rows that have a target which is a token, int64 [M]; None if all have."""
    scored = rows.inside.any(dim=1)
    return None if bool(scored.all()) else torch.nonzero(scored).view(-1)
