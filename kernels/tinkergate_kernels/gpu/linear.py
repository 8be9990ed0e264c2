"""The fused linear logprob on a GPU: what the public functions call for tensors that lie there.

    linear_shapes.py     which tile each GPU takes
    linear_operands.py   the arguments as the kernels read them, the LoRA as more columns
    linear_tile.py       a tile of logits
    linear_forward.py    kernels: partials over splits of the vocabulary, merge, top-k
    linear_partials.py   their launchers
    linear_top.py        top-k for any k
    linear_direction.py  kernels: probabilities with a lagging reference
    linear_product.py    kernel: a product that is added to what is there
    linear_means.py      launcher of both: logprobs with the mean of the unembedding
    linear_recompute.py  kernel: the gradient in the logits
    linear_gradient.py   its launcher: gradients of everything
    linear_chunks.py     how rows and vocabulary are cut where a chunk is held

Rows that have no target are left out before anything is launched, for which the launchers wait
once for the targets. Launchers check no arguments: `tinkergate_kernels.arguments` does.
"""

from __future__ import annotations

from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.gpu.linear_gradient import Gradients, Needs, gradient
from tinkergate_kernels.gpu.linear_means import Direction, direction
from tinkergate_kernels.gpu.linear_partials import (
    SPLIT,
    TOP_LIMIT,
    Top,
    merge,
    partials,
    partials_and_top,
)
from tinkergate_kernels.gpu.linear_top import top_of_chunks
from tinkergate_kernels.partials import Partials

__all__ = [
    "SPLIT",
    "TOP_LIMIT",
    "Direction",
    "Gradients",
    "Needs",
    "Top",
    "direction",
    "gradient",
    "merge",
    "partials",
    "partials_and_top",
    "partials_with_top",
]


def partials_with_top(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    inv_temperature: Tensor,
    softcap: float | None = None,
    vocab_start: int = 0,
    vocab_total: int | None = None,
    split: int = SPLIT,
) -> tuple[Partials, Top]:
    """`partials`, and the k largest z of each row with their ids: in the same pass while k is at
    most `TOP_LIMIT`, else in a second one with logits of a chunk in memory."""
    same = k <= TOP_LIMIT
    found, best = partials_and_top(
        hidden,
        weight,
        targets,
        bias=bias,
        lora=lora,
        inv_temperature=inv_temperature,
        softcap=softcap,
        vocab_start=vocab_start,
        vocab_total=vocab_total,
        split=split,
        top=k if same else 0,
    )
    if not same:
        best = top_of_chunks(
            hidden,
            weight,
            targets,
            k,
            bias=bias,
            lora=lora,
            inv_temperature=inv_temperature,
            softcap=softcap,
            vocab_start=vocab_start,
            vocab_total=vocab_total,
        )
    return found, best
