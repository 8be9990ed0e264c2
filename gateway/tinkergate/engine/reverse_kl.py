"""The reverse Kullback-Leibler divergence from a model to a reference, over the whole vocabulary.

    p = softmax(z / T), q = softmax(z' / T) for the logits z of the model and z' of the reference
    KL(p || q) = sum_v p(v) (log p(v) - log q(v))
    loss = sum over rows of  w KL(p || q)
    d loss / d z(v) = w / T p(v) (log p(v) - log q(v) - KL(p || q))

This is what MiniLLM (Gu et al. 2023, arXiv:2306.08543) and GKD (Agarwal et al. 2023,
arXiv:2306.13649, beta = 1) minimise in the student's predictions, token by token and without
sampling over tokens. The temperature divides the logits of both (Hinton et al. 2015,
arXiv:1503.02531), without that paper's factor of T squared. MinT has not published the formula of
its own call; that it is this one is inferred from its name and its arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinkergate.engine.base import Unembedding, float32_logits, float32_unprojected

TILE_ELEMENTS = 1 << 22
"""How many logits of one model are there at a time: 16 MiB of each of the handful of arrays that a
tile takes, whatever the number of rows."""


class Rows(NamedTuple):
    """The predictions of one model, before the vocabulary."""

    hidden: Tensor
    """(R, width): the states after the final norm."""
    unembedding: Unembedding


class Divergence(NamedTuple):
    """What the rows come to. Everything without a graph of autograd."""

    divergence: Tensor
    """KL(p || q) of each row in nats, float64 (R,)."""
    hidden: Tensor
    """d loss / d hidden of the model, float32 (R, width)."""
    a: Tensor | None
    """d loss / d A of the LoRA on the model's unembedding, (rank, width); None without one."""
    b: Tensor | None
    """d loss / d B, (vocabulary, rank)."""


@torch.no_grad()
def weighted_divergence(
    model: Rows, reference: Rows, weights: Tensor, temperature: float
) -> Divergence:
    """The divergence of each row and the gradient of the loss; row i of one goes with row i of the
    other. `weights` is float32 (R,). Takes a few arrays of TILE_ELEMENTS, or of one row's logits
    if those are more."""
    weight, _, lora = model.unembedding
    hidden = model.hidden.detach()
    count = max(1, TILE_ELEMENTS // len(weight))
    divergences: list[Tensor] = []
    gradients: list[Tensor] = []
    grad_a = None if lora is None else torch.zeros_like(lora.a)
    grad_b = None if lora is None else torch.zeros_like(lora.b)
    for start in range(0, len(hidden), count):
        part = slice(start, start + count)
        states = hidden[part].float()
        divergence, slope = _tile(
            float32_logits(states, model.unembedding),
            float32_logits(reference.hidden[part], reference.unembedding),
            weights[part],
            temperature,
        )
        divergences.append(divergence)
        gradient = float32_unprojected(slope, weight)
        if lora is not None and grad_a is not None and grad_b is not None:
            inner = lora.scale * (slope @ lora.b)
            gradient = gradient + inner @ lora.a
            grad_a += inner.T @ states
            grad_b += slope.T @ (lora.scale * (states @ lora.a.T))
        gradients.append(gradient)
    return Divergence(
        torch.cat(divergences) if divergences else hidden.new_zeros(0, dtype=torch.float64),
        torch.cat(gradients) if gradients else hidden.new_zeros(hidden.shape, dtype=torch.float32),
        grad_a,
        grad_b,
    )


def _tile(
    logits: Tensor, other: Tensor, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The divergence of each row, float64, and d loss / d logits, float32."""
    logp = torch.log_softmax(logits / temperature, dim=1)
    gap = logp - torch.log_softmax(other / temperature, dim=1)
    p = logp.exp_()
    divergence = (p * gap).sum(dim=1, dtype=torch.float64)
    slope = p.mul_(gap.sub_(divergence.float()[:, None]))
    return divergence, slope.mul_((weights / temperature)[:, None])
