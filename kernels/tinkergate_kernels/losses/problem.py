"""One evaluation of a loss, checked and laid out flat, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tinkergate_kernels.losses.registry import LOSSES, LossSpec


class LossResult(NamedTuple):
    """A loss, its gradient, and what it says, from one evaluation."""

    loss: Tensor
    """The sum over all datums: a float64 scalar."""
    per_datum: Tensor
    """The loss of each datum, float64 [S]. That of a pair stands at its chosen datum, and 0 at the
    rejected one."""
    gradient: Tensor
    """d loss / d logprobs, float32, shaped like the logprobs."""
    metrics: dict[str, float]
    """By `name:reduction`; over calls a sum is added up, and of a `min` or `max` the extreme is
    taken. Extremes are left out where no token or pair is active."""


class Statistics(NamedTuple):
    """Sums and extremes over the active tokens, float64 scalars."""

    active: Tensor
    clipped: Tensor
    ratio: Tensor
    kl_k1: Tensor
    """Of lq - lp: an estimate of KL(sampler | model), unbiased and noisy."""
    kl_k3: Tensor
    """Of r - 1 - (lp - lq): the same expectation, never negative."""
    kl_ref: Tensor
    ratio_min: Tensor
    ratio_max: Tensor

    @classmethod
    def together(cls, parts: Sequence[Statistics], device: torch.device) -> Statistics:
        """Those of parts on a device, added up in order."""
        if not parts:
            return cls(*torch.zeros(len(cls._fields), dtype=torch.float64, device=device))
        columns = torch.stack([torch.stack(part) for part in parts]).T
        sums = list(columns[:-2].sum(dim=1))
        return cls(*sums, *[columns[-2].min(), columns[-1].max()])

    def metrics(self, spec: LossSpec) -> dict[str, float]:
        """Those that the loss names. Waits for the device, once."""
        numbers = self._asdict()
        values = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        named = {
            "active_tokens:sum": values["active"],
            "clipped_tokens:sum": values["clipped"],
            "ratio:sum": values["ratio"],
            "kl_k1:sum": values["kl_k1"],
            "kl_k3:sum": values["kl_k3"],
            "kl_ref:sum": values["kl_ref"],
        }
        if values["active"]:
            named |= {"ratio:min": values["ratio_min"], "ratio:max": values["ratio_max"]}
        return {name: named[name] for name in spec.metrics if name in named}


@dataclass(frozen=True)
class Problem:
    """What an evaluation starts from."""

    spec: LossSpec
    logprobs: Tensor
    """Float32 [M], where M = T, or T K for K targets a token."""
    inputs: Mapping[str, Tensor]
    """Float32 [M] each; optional ones may be absent."""
    offsets: Tensor
    """Int64 [S + 1]: datum s has the entries offsets[s]..offsets[s + 1] of M."""
    settings: Mapping[str, float]
    """All of them."""

    def bound(self, name: str) -> Tensor | float:
        """A clip threshold: that of each token if given, else that of the call."""
        given = self.inputs.get(name)
        return self.settings[name] if given is None else given


def problem(
    name: str,
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    offsets: Tensor,
    config: Mapping[str, object],
) -> Problem:
    """Check the arguments of `evaluate`. Raises ValueError naming the argument, its value and the
    rule. Reads the offsets, so on a GPU it waits for them."""
    spec = LOSSES.get(name)
    if spec is None:
        raise ValueError(f"name is {name!r}; must be one of {', '.join(LOSSES)}")
    settings = spec.resolved(config)
    if logprobs.ndim not in (1, 2):
        raise ValueError(f"logprobs have shape {list(logprobs.shape)}; must be [T] or [T, K]")
    if logprobs.ndim == 2 and not spec.many_targets:
        raise ValueError(
            f"logprobs have shape {list(logprobs.shape)}; {name} takes one target a token, [T]"
        )
    _check_float("logprobs", logprobs, logprobs)
    for missing in (key for key in spec.required if key not in inputs):
        raise ValueError(f"inputs[{missing!r}] is missing; {name} needs it")
    for key, tensor in inputs.items():
        if key not in spec.inputs:
            known = ", ".join(spec.inputs) or "none"
            raise ValueError(f"inputs[{key!r}] is not an input of {name}; there are: {known}")
        _check_float(f"inputs[{key!r}]", tensor, logprobs)
    _check_offsets(offsets, logprobs, spec)
    width = logprobs.shape[1] if logprobs.ndim == 2 else 1
    return Problem(
        spec=spec,
        logprobs=logprobs.detach().reshape(-1).contiguous(),
        inputs={key: each.detach().reshape(-1).contiguous() for key, each in inputs.items()},
        offsets=offsets * width,
        settings=settings,
    )


def _check_float(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} is {tensor.dtype}; must be torch.float32")
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; must be that of logprobs, {list(like.shape)}"
        )
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; logprobs are on {like.device}")


def _check_offsets(offsets: Tensor, logprobs: Tensor, spec: LossSpec) -> None:
    if offsets.ndim != 1 or offsets.dtype != torch.int64 or not offsets.numel():
        raise ValueError(
            f"offsets are {offsets.dtype} {list(offsets.shape)}; must be torch.int64 [S + 1]"
        )
    if offsets.device != logprobs.device:
        raise ValueError(f"offsets are on {offsets.device}; logprobs are on {logprobs.device}")
    falls = torch.any(offsets.diff() < 0)
    first, last, fell = torch.stack([offsets[0], offsets[-1], falls.long()]).tolist()
    if first != 0 or last != logprobs.shape[0] or fell:
        raise ValueError(
            f"offsets go from {first} to {last}{' and fall' if fell else ''}; must rise from 0 to "
            f"the number of tokens, {logprobs.shape[0]}"
        )
    if spec.paired and offsets.numel() % 2 == 0:
        raise ValueError(
            f"offsets are of {offsets.numel() - 1} datums; {spec.name} takes pairs, even = chosen "
            "and odd = rejected, so must be an even number"
        )
