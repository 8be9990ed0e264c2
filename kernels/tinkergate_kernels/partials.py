"""What a part of the vocabulary says of the softmax over all of it, and how parts come together.

A vocabulary that lies on several devices, or is taken a split at a time, needs no logits to be
exchanged: for the logits z of a split (after bias, softcap and temperature, in nats) it takes

    maximum = max z,  total = sum exp(z - maximum),  weighted = sum exp(z - maximum) (z - maximum)

and z at the targets. Splits merge in the order of their place, one after another, so the bits of
the result depend on where the vocabulary is cut, and not on who computed which split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Partials(NamedTuple):
    """Sums over S splits of the vocabulary, for N rows and K targets each. Float32."""

    maximum: Tensor
    """[S, N]: the largest z of the split; the least float where it has none above that."""
    total: Tensor
    """[S, N]: sum of exp(z - maximum)."""
    weighted: Tensor
    """[S, N]: sum of exp(z - maximum) (z - maximum), for the entropy."""
    target: Tensor
    """[S, N, K]: z at the target if it lies in the split, the least float standing for -inf; else
    -inf."""


class Merged(NamedTuple):
    """The softmax over the whole vocabulary. Float32, nats."""

    logprob: Tensor
    """[N, K]: of the targets; 0 for a target that lies in no split."""
    logsumexp: Tensor
    """[N]: of z; 0 for a row none of whose targets lies in a split."""
    entropy: Tensor
    """[N]: of the prediction; 0 for such a row."""


def concatenated(parts: Sequence[Partials]) -> Partials:
    """The splits of several devices, in the order of the vocabulary."""
    if not parts:
        raise ValueError("parts is empty; must hold the partials of one device or more")
    return Partials(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def merge(partials: Partials) -> Merged:
    """Merge splits, first to last."""
    maximum, total, weighted, target = (field[0] for field in partials)
    for m, t, w, picked in zip(*(field[1:] for field in partials), strict=True):
        top = torch.maximum(maximum, m)
        # Never -inf minus -inf: the maximum of a split is a float.
        down, up = maximum - top, m - top
        old, new = down.exp(), up.exp()
        # sum e^(z - top) (z - top), where z - top = (z - m) + (m - top).
        weighted = old * weighted + _product(down, old * total) + new * w + _product(up, new * t)
        total = old * total + new * t
        maximum = top
        target = torch.maximum(target, picked)
    scored = target != float("-inf")
    target = torch.where(target == torch.finfo(torch.float32).min, float("-inf"), target)
    # Not `total > 0`: a total that is no number is to show.
    read = scored.any(dim=1) & (total != 0)
    log_total = torch.where(read, total, 1.0).log()
    # (z - max) - log(total) rather than z - (max + log(total)): the large terms cancel first.
    logprob = (target - maximum[:, None]) - log_total[:, None]
    return Merged(
        torch.where(scored, logprob, 0.0).clamp_(max=0.0),
        torch.where(read, maximum + log_total, 0.0),
        torch.where(read, log_total - weighted / torch.where(read, total, 1.0), 0.0),
    )


def _product(exponent: Tensor, factor: Tensor) -> Tensor:
    """exponent * factor, and 0 where the factor is: the exponent may be as low as floats go."""
    return torch.where(factor == 0, 0.0, exponent * factor)
