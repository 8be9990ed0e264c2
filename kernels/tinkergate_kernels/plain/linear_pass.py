"""A pass over the vocabulary in plain PyTorch: whole rows of float32 logits, and autograd."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.partials import Partials
from tinkergate_kernels.passes import Gradients, Needs, Rows, Scores
from tinkergate_kernels.plain.tiles import filled, tiles_of
from tinkergate_kernels.reference import selective_scores
from tinkergate_kernels.reference.linear import linear_logits

_LEAST = torch.finfo(torch.float32).min


class PlainPass:
    """See `tinkergate_kernels.passes.Pass`. Nothing is kept for the backward, which makes the
    logits again."""

    def __init__(self, rows: Rows) -> None:
        self._rows = _in_float32(rows)
        self._needs = Needs(hidden=False, a=False, b=False, weight=False)

    def forward(self, needs: Needs, keep_bytes: int) -> Tensor:
        """See `Pass.forward`."""
        del keep_bytes
        self._needs = needs
        return self.scores(entropy=False, topk=0).logprob

    def backward(self, upstream: Tensor) -> Gradients:
        """See `Pass.backward`."""
        rows, needs = self._rows, self._needs
        made = {name: torch.zeros_like(each) for name, each in _followed(rows, needs)[1].items()}
        for place, tile in _tiles(rows):
            with torch.enable_grad():
                followed, leaves = _followed(tile, needs)
                scores = selective_scores(_logits(followed), tile.targets, entropy=False)
                sent = filled(upstream[place])
                found = torch.autograd.grad(scores.logprob, list(leaves.values()), sent)
            for name, gradient in zip(leaves, found, strict=True):
                if name == "hidden":
                    made[name][place] = gradient[: place.stop - place.start]
                else:
                    made[name] += gradient
        return Gradients(**made)

    def scores(self, *, entropy: bool, topk: int) -> Scores:
        """See `Pass.scores`."""
        rows = self._rows
        count, k = rows.targets.shape
        new = rows.hidden.new_empty
        found = Scores(
            new(count, k),
            new(count),
            new(count) if entropy else None,
            rows.targets.new_empty(count, topk),
            new(count, topk),
        )
        for place, tile in _tiles(rows):
            told = selective_scores(_logits(tile), tile.targets, entropy=entropy, topk=topk)
            for whole, part in zip(found, told, strict=True):
                if whole is not None and part is not None:
                    whole[place] = part[: place.stop - place.start]
        return found


def partials(rows: Rows, vocab_start: int, vocab_total: int, split: int) -> Partials:
    """See `tinkergate_kernels.linear.linear_partials`."""
    rows = _in_float32(rows)
    count, k = rows.targets.shape
    vocab = len(rows.weight)
    spans = [slice(start, min(start + split, vocab)) for start in range(0, vocab, split)]
    shapes = [(len(spans), count)] * 3 + [(len(spans), count, k)]
    found = Partials(*(rows.hidden.new_empty(shape) for shape in shapes))
    scored = (rows.targets >= 0) & (rows.targets < vocab_total)
    unread = ~scored.any(dim=1)
    for place, tile in _tiles(rows):
        own = slice(place.stop - place.start)
        for number, span in enumerate(spans):
            z = _logits(_of_tokens(tile, span))
            maximum = z.amax(dim=1).clamp_(min=_LEAST)
            below = z - maximum[:, None]
            powers = below.exp()
            weighted = (powers * below.masked_fill(powers == 0, 0.0)).sum(dim=1)
            local = tile.targets - vocab_start - span.start
            there = (local >= 0) & (local < z.shape[1])
            picked = z.gather(1, local.clamp(0, z.shape[1] - 1)).clamp_(min=_LEAST)
            picked.masked_fill_(~there, float("-inf"))
            sums = (maximum, powers.sum(dim=1), weighted, picked)
            for whole, part in zip(found, sums, strict=True):
                whole[number, place] = part[own]
    # A row without a target in the whole vocabulary is as if there were no tokens.
    for whole, nothing in zip(found, (_LEAST, 0.0, 0.0, float("-inf")), strict=True):
        whole[:, unread] = nothing
    return found


def _in_float32(rows: Rows) -> Rows:
    lora = rows.lora
    return rows._replace(
        hidden=rows.hidden.float(),
        weight=rows.weight.float(),
        bias=None if rows.bias is None else rows.bias.float(),
        lora=None if lora is None else Lora(lora.a.float(), lora.b.float(), lora.scale),
    )


def _tiles(rows: Rows) -> Iterator[tuple[slice, Rows]]:
    """Tiles of rows, filled up with rows that have no target."""
    for place in tiles_of(len(rows.hidden)):
        tile = rows._replace(
            hidden=filled(rows.hidden[place]),
            targets=filled(rows.targets[place], -1),
            inverse_temperature=filled(rows.inverse_temperature[place], 1),
        )
        yield place, tile


def _of_tokens(rows: Rows, span: slice) -> Rows:
    """The rows with a part of the vocabulary."""
    lora = rows.lora
    return rows._replace(
        weight=rows.weight[span],
        bias=None if rows.bias is None else rows.bias[span],
        lora=None if lora is None else lora._replace(b=lora.b[span]),
    )


def _logits(rows: Rows) -> Tensor:
    """z [R, V], after the temperature."""
    logits = linear_logits(rows.hidden, rows.weight, rows.bias, rows.lora, 1.0, rows.softcap)
    return logits * rows.inverse_temperature[:, None]


def _followed(rows: Rows, needs: Needs) -> tuple[Rows, dict[str, Tensor]]:
    """The rows with new leaves in place of the tensors whose gradients are wanted, and those."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, tensor: Tensor) -> Tensor:
        if not getattr(needs, name):
            return tensor
        leaves[name] = tensor.detach().requires_grad_()
        return leaves[name]

    lora = rows.lora
    followed = rows._replace(
        hidden=leaf("hidden", rows.hidden),
        weight=leaf("weight", rows.weight),
        lora=None if lora is None else Lora(leaf("a", lora.a), leaf("b", lora.b), lora.scale),
    )
    return followed, leaves
