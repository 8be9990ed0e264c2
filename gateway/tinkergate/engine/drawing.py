"""Tokens from logits: temperature, top-k, top-p, and the logprobs that go with them.

The logprob of a token is that under the tempered distribution, log_softmax(logits / temperature),
before top-k and top-p narrow the choice; temperature 0 takes the likeliest token and states
logprobs at temperature 1. Scoring with the same temperature gives the same numbers.

A draw inverts the cumulative distribution, summed in float64, at one uniform number of the
sample's own stream. One row is drawn at a time, so that what comes out cannot depend on the rows
beside it, not even by a rounding.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STREAM_OF_ALTERNATIVES = (1 << 64) - 1
"""The index of the stream that prompt alternatives are drawn from; no sample has it."""


@dataclass(frozen=True, slots=True)
class DrawRule:
    """How one token is chosen from its logits."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token, the lower id of equals."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 means all."""
    top_p: float = 1.0
    """Only the smallest set of likeliest tokens, of those that top_k leaves and with their
    probabilities scaled to 1, whose sum reaches p; in (0, 1]."""

    @property
    def logprob_temperature(self) -> float:
        """The temperature at which logprobs are stated."""
        return self.temperature or 1.0


def draw_seed() -> int:
    """A seed from the operating system, for a request that brings none."""
    return secrets.randbits(64)


def stream(seed: int, index: int) -> np.random.Generator:
    """The uniform numbers of one sample: a counter-based generator (Philox, Salmon et al., 2011)
    whose key is (seed, index), both below 2^64. The t-th number belongs to the t-th token."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


class Row:
    """One row of logits at a temperature.

    `logits` is float32 [V] on any device and is not changed. The row is stated relative to its
    largest logit before the division, which keeps the rounding of likely tokens small whatever
    the temperature.
    """

    def __init__(self, logits: Tensor, temperature: float) -> None:
        self.shifted = logits - logits.max()
        if temperature != 1.0:
            self.shifted /= temperature
        self.weights = self.shifted.exp()
        self.cumulative = self.weights.cumsum(0, dtype=torch.float64)
        self.total = self.cumulative[-1]

    def logprob(self, tokens: Tensor) -> Tensor:
        """The logprobs of token ids, float64. NaN if the logits are not numbers."""
        return self.shifted[tokens].double() - self.total.log()

    def logprobs(self) -> Tensor:
        """The logprobs of all tokens, float32 [V]."""
        return (self.shifted.double() - self.total.log()).float()

    def draw(self, rule: DrawRule, uniforms: NDArray[np.float64]) -> Tensor:
        """A token id for each of the numbers in [0, 1), int64 like `uniforms` in shape. Their
        probabilities are above 0."""
        if rule.temperature == 0:
            return self.shifted.argmax().expand(uniforms.shape)
        ids, cumulative = None, self.cumulative
        if 0 < rule.top_k < len(self.weights) or rule.top_p < 1:
            ids = self._allowed(rule)
            cumulative = self.weights[ids].cumsum(0, dtype=torch.float64)
        # The first entry above u * total adds something to the sum, so its weight is not 0. The
        # clamp only speaks when the logits are not numbers.
        points = cumulative[-1] * torch.from_numpy(uniforms).to(cumulative.device)
        places = torch.searchsorted(cumulative, points, right=True).clamp(max=len(cumulative) - 1)
        return places if ids is None else ids[places]

    def _allowed(self, rule: DrawRule) -> Tensor:
        """The ids that top_k and top_p leave, likeliest first."""
        if 0 < rule.top_k < len(self.weights):
            ids = likeliest_of(self.shifted, rule.top_k)
            total = self.weights[ids].sum(dtype=torch.float64)
        else:
            total = self.total
            # Tokens below (1 - p) / V hold less than 1 - p together: the others reach p without
            # them, so there is no need to sort the whole vocabulary.
            bound = total * ((1 - rule.top_p) / len(self.weights))
            ids = (self.weights >= bound).nonzero().view(-1)
            ids = ids[self.weights[ids].sort(descending=True, stable=True).indices]
        if rule.top_p < 1:
            cumulative = self.weights[ids].cumsum(0, dtype=torch.float64)
            reached = torch.searchsorted(cumulative, (total * rule.top_p).view(1))
            ids = ids[: int(reached) + 1]
        return ids


def likeliest_of(values: Tensor, k: int) -> Tensor:
    """The ids of the k largest of `values` [V], largest first, equals by lower id; int64 [k]."""
    if k < len(values):
        smallest = values.topk(k, sorted=False).values.min()
        ids = (values >= smallest).nonzero().view(-1)
    else:
        ids = torch.arange(len(values), device=values.device)
    return ids[values[ids].sort(descending=True, stable=True).indices[:k]]
