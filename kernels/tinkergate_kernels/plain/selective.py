"""The selective log-softmax in plain PyTorch: `tinkergate_kernels.reference` in float32, and
autograd."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinkergate_kernels.plain.tiles import filled, tiles_of
from tinkergate_kernels.reference import selective_scores
from tinkergate_kernels.selective_results import Sums


def forward(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inv_temperature: float | Tensor,
    softcap: float | None,
    entropy: bool,
    topk: int,
) -> Sums:
    """Scores of logits [N, V] at targets [N, K]."""
    count = len(logits)

    def nothing(*shape: int) -> Tensor:
        return torch.zeros(shape, device=logits.device)

    found = Sums(
        logprob=nothing(*targets.shape),
        logsumexp=nothing(count),
        entropy=nothing(count) if entropy else None,
        maximum=nothing(count),
        log_total=nothing(count),
        topk_ids=targets.new_full((count, topk), -1) if topk else None,
        topk_logprobs=nothing(count, topk) if topk else None,
    )
    for rows in _tiles(targets, logits.shape[1]):
        inverse = _inverse(inv_temperature, rows, logits)
        x = _bent(filled(logits[rows].float()), bias, softcap)
        z = x * inverse
        told = selective_scores(z, filled(targets[rows], -1), entropy=entropy, topk=topk)
        fields = zip((found.logprob, found.logsumexp, found.entropy), told[:3], strict=True)
        for whole, part in [
            *fields,
            (found.maximum, x.amax(dim=1)),
            (found.log_total, _log_total(z)),
            (found.topk_ids, told.topk_ids),
            (found.topk_logprobs, told.topk_logprobs),
        ]:
            if whole is not None and part is not None:
                whole[rows] = part[: len(rows)]
    return found


def backward(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inv_temperature: float | Tensor,
    softcap: float | None,
    statistics: tuple[Tensor, Tensor, Tensor | None],
    upstream: Sequence[Tensor | None],
    out: Tensor,
) -> None:
    """Write the gradient of the logits into `out`, which may be the logits. `upstream` are the
    gradients of logprob, logsumexp and entropy; the `statistics` are made again."""
    del statistics
    vocab = logits.shape[1]
    out[~((targets >= 0) & (targets < vocab)).any(dim=1)] = 0
    for rows in _tiles(targets, vocab):
        leaf = filled(logits[rows].float()).requires_grad_()
        with torch.enable_grad():
            z = _bent(leaf, bias, softcap) * _inverse(inv_temperature, rows, logits)
            told = selective_scores(z, filled(targets[rows], -1), entropy=upstream[2] is not None)
            pairs = [
                (value, filled(gradient[rows]))
                for value, gradient in zip(told[:3], upstream, strict=True)
                if value is not None and gradient is not None
            ]
            values, gradients = zip(*pairs, strict=True)
            (made,) = torch.autograd.grad(values, leaf, gradients)
        out[rows] = made[: len(rows)].to(out.dtype)


def _tiles(targets: Tensor, vocab: int) -> Iterator[Tensor]:
    """The rows, int64, that have a target which counts."""
    live = ((targets >= 0) & (targets < vocab)).any(dim=1).nonzero().view(-1)
    for place in tiles_of(len(live)):
        yield live[place]


def _inverse(inv_temperature: float | Tensor, rows: Tensor, logits: Tensor) -> Tensor:
    """[R, 1], float32."""
    if isinstance(inv_temperature, Tensor):
        return filled(inv_temperature[rows], 1)[:, None]
    return torch.full((1, 1), inv_temperature, device=logits.device)


def _bent(x: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    if bias is not None:
        x = x + bias.float()
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def _log_total(z: Tensor) -> Tensor:
    """log2 of the sum of exp(z - max z), [R]."""
    return (z - z.amax(dim=1, keepdim=True)).exp().sum(dim=1).log() / math.log(2)
