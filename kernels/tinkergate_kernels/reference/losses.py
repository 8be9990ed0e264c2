"""The losses as their formulas say, in any floating dtype, with autograd for the gradient.

Datum by datum, in a loop, so that nothing is shared with the kernels but the formulas.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tinkergate_kernels.losses.registry import LOSSES


def losses(
    name: str,
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    offsets: Tensor,
    config: Mapping[str, object] | None = None,
) -> Tensor:
    """The loss of each datum, [S], in the dtype of `logprobs`; arguments as of
    `tinkergate_kernels.losses.evaluate`. A pair's loss stands at its chosen datum."""
    spec = LOSSES[name]
    settings = spec.resolved(config or {})
    given = dict(inputs)
    for key in spec.optional:
        given.setdefault(key, torch.full_like(logprobs, spec.filler(key, settings)))
    cuts = offsets.tolist()
    parts = [slice(start, end) for start, end in itertools.pairwise(cuts)]
    datums = [(logprobs[part], {key: each[part] for key, each in given.items()}) for part in parts]
    if spec.paired:
        gains = [_gain(lp, own) for lp, own in datums]
        values = []
        for chosen, rejected in zip(gains[::2], gains[1::2], strict=True):
            values += [_preference(chosen - rejected, settings), chosen.detach() * 0]
    else:
        values = [_datum(name, lp, own, settings) for lp, own in datums]
    return torch.stack(values) if values else logprobs.new_zeros(0)


def _gain(lp: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    here = own["weights"] != 0
    return (own["weights"][here] * (lp[here] - own["ref_logprobs"][here])).sum()


def _preference(h: Tensor, settings: Mapping[str, float]) -> Tensor:
    beta, smoothing = settings["beta"], settings["label_smoothing"]
    loss = -(1 - smoothing) * logsigmoid(beta * h)
    return loss - smoothing * logsigmoid(-beta * h) if smoothing else loss


def _datum(
    name: str, lp: Tensor, own: Mapping[str, Tensor], settings: Mapping[str, float]
) -> Tensor:
    if name == "cross_entropy":
        here = own["weights"] != 0
        return -(own["weights"][here] * lp[here]).sum()
    here = own["advantages"] != 0
    if name == "importance_sampling":
        here = here & (own["weights"] != 0)
    a, lq, p = own["advantages"][here], own["logprobs"][here], lp[here]
    r = (p - lq).exp()
    low, high = (own[key][here] if key in own else None for key in _THRESHOLDS)
    match name:
        case "importance_sampling":
            return -(own["weights"][here] * r * a).sum()
        case "ppo":
            return -torch.minimum(r * a, r.clamp(low, high) * a).sum()
        case "cispo":
            return -(r.clamp(low, high).detach() * a * p).sum()
        case "dro":
            return -(a * p - settings["beta"] / 2 * (p - lq) ** 2).sum()
        case "gspo":
            counted = own["sequence_ratio_mask"] != 0
            shift = (lp - own["logprobs"])[counted]
            mean = shift.mean() if shift.numel() else shift.sum()
            s = mean.exp().detach() * (p - p.detach()).exp()
            bounded = s.clamp(*(settings[key] for key in _THRESHOLDS))
            return -torch.minimum(s * a, bounded * a).sum()
        case "dppo":
            rise = p.exp() - lq.exp()
            too_high = (a > 0) & (rise > settings["dppo_mask_high"])
            too_low = (a < 0) & (rise < -settings["dppo_mask_low"])
            keep = ~(too_high | too_low)
            return (
                settings["kl_tau"] * ((p - lq) ** 2).sum()
                - (settings["adv_tau"] * a[keep] * r[keep]).sum()
            )
        case "grpo":
            x = own["ref_logprobs"][here] - p
            k3 = x.exp() - x - 1
            surrogate = torch.minimum(r * a, r.clamp(low, high) * a)
            return (settings["beta"] * k3 - surrogate).sum()
        case _:
            raise ValueError(f"name is {name!r}; there is no formula for it")


_THRESHOLDS = ("clip_low_threshold", "clip_high_threshold")
