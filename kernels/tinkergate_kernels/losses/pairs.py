"""The loss of preference pairs, once the sums of their datums are known: arrays of S numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Pairs(NamedTuple):
    """What the pairs come to."""

    per_datum: Tensor
    """Float64 [S]: the pair's loss at the chosen datum, 0 at the rejected."""
    slope: Tensor
    """Float64 [S]: d loss / d (sum of w (lp - ref)) of each datum."""
    metrics: dict[str, float]


def preference(margins: Tensor, settings: Mapping[str, float]) -> Pairs:
    """The dpo loss, where margins, float64 [S], are each datum's sum of w (lp - ref): even =
    chosen, odd = rejected. A reward is beta times it."""
    beta, smoothing = settings["beta"], settings["label_smoothing"]
    chosen, rejected = (beta * margins.view(-1, 2)).unbind(1)
    margin = chosen - rejected
    wrong = torch.sigmoid(-margin)
    loss = -functional.logsigmoid(margin)
    slope = -beta * wrong
    if smoothing:  # 0 times an infinite loss would be no number
        loss = (1 - smoothing) * loss - smoothing * functional.logsigmoid(-margin)
        slope = -beta * ((1 - smoothing) * wrong - smoothing * torch.sigmoid(margin))
    numbers = [(margin > 0).sum().double(), chosen.sum(), rejected.sum(), margin.sum()]
    names = ["correct_pairs:sum", "chosen_reward:sum", "rejected_reward:sum", "margin:sum"]
    if margin.numel():
        numbers += [margin.min(), margin.max()]
        names += ["margin:min", "margin:max"]
    return Pairs(
        per_datum=torch.stack([loss, torch.zeros_like(loss)], 1).view(-1),
        slope=torch.stack([slope, -slope], 1).view(-1),
        metrics={"pairs:sum": float(margin.numel())}
        | dict(zip(names, torch.stack(numbers).tolist(), strict=True)),
    )
