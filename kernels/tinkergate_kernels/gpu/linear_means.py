"""Launcher of the direction: logprobs with the mean of the unembedding under the prediction."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.gpu.linear_chunks import CHUNK, CHUNK_BYTES, Chunks, chunks
from tinkergate_kernels.gpu.linear_direction import (
    advance,
    finish,
    probability_chunk,
    target_logits,
)
from tinkergate_kernels.gpu.linear_operands import Operands, operands, parts_of
from tinkergate_kernels.gpu.linear_partials import live_rows, local_targets, placed
from tinkergate_kernels.gpu.linear_product import add_product

_ROWS = 128
_LIMITS = {torch.float16: 15.0}
"""Octaves that a logit may lie above its reference: 2^16 is beyond float16."""
_LIMIT = 100.0


class Direction(NamedTuple):
    """What the backward of a frozen unembedding needs. Float32; 0 in rows without a target."""

    logprob: Tensor
    """[N, K]."""
    logsumexp: Tensor
    """[N]: of z, in nats."""
    entropy: Tensor
    """[N]."""
    mean_w: Tensor
    """[N, D]: sum_v p[n, v] W[v]."""
    mean_b: Tensor | None
    """[N, r]: sum_v p[n, v] B[v], where there is a LoRA."""


def direction(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    inv_temperature: Tensor,
    chunk: int = CHUNK,
    chunk_bytes: int = CHUNK_BYTES,
) -> Direction:
    """Logprobs of targets int64 [N, K] for hidden [N, D] and weight [V, D], and the means of W and
    of LoRA's B, for

        d logprob[n, k] / d hidden[n] = inv_temperature[n] (W[t] - mean_w[n]
                                        + scale (B[t] - mean_b[n]) A)

    Two products of N x D x V in all. Takes `chunk_bytes` for probabilities. Not for a softcap,
    whose derivative stands between W and the mean.
    """
    places = live_rows(targets, weight.shape[0])
    total = targets.shape[0]
    if places is not None:
        hidden, targets, inv_temperature = (
            x.index_select(0, places) for x in (hidden, targets, inv_temperature)
        )
    given = operands(hidden, weight, bias, lora)
    # What is small is taken in two parts, so that only the probabilities are rounded.
    b = [] if lora is None else parts_of(lora.b, given.hidden.dtype, 2)
    inverse = inv_temperature.contiguous()
    local = local_targets(targets, 0, weight.shape[0])
    found = _empty(local, given, b)
    if local.numel():
        plan = chunks(given.hidden, weight.shape[0], given.shape, chunk, chunk_bytes)
        for block in plan.blocks:
            rows = Direction(*(None if x is None else x[block] for x in found))  # type: ignore[arg-type]
            _of_block(given.of_rows(block), b, inverse[block], local[block], rows, plan)
    if places is None:
        return found
    spread = (None if x is None else placed(x, places, total, 0, 0.0) for x in found)
    return Direction(*spread)  # type: ignore[arg-type]


def _of_block(
    given: Operands,
    b: list[Tensor],
    inverse: Tensor,
    local: Tensor,
    found: Direction,
    plan: Chunks,
) -> None:
    count, k = local.shape
    reference = torch.empty_like(inverse)
    target_logits[(count,)](
        given.hidden,
        given.weight,
        given.hidden if given.low is None else given.low,
        given.weight if given.b is None else given.b,
        given.bias_pointer(),
        local,
        reference,
        given.hidden.shape[1],
        given.low_width,
        *given.strides(),
        k,
        LORA=given.low is not None,
        BIAS=given.bias is not None,
        BLOCK=512,
        K_BLOCK=min(64, triton.next_power_of_2(k)),
        num_warps=4,
    )
    target = torch.full(local.shape, -torch.inf, device=local.device)
    exceeded = torch.zeros_like(inverse, dtype=torch.int32)
    sums = _pass(given, b, inverse, local, found, plan, reference, target, exceeded, True)
    if bool(exceeded.any()):
        # The reference is the maximum now.
        sums = _pass(given, b, inverse, local, found, plan, reference, target, exceeded, False)
    total, weighted = sums
    finish[(triton.cdiv(count, _ROWS),)](
        reference,
        total,
        weighted,
        inverse,
        target,
        found.logprob,
        found.logsumexp,
        found.entropy,
        count,
        k,
        ROWS=_ROWS,
        num_warps=4,
    )


def _pass(
    given: Operands,
    b: list[Tensor],
    inverse: Tensor,
    local: Tensor,
    found: Direction,
    plan: Chunks,
    reference: Tensor,
    target: Tensor,
    exceeded: Tensor,
    lagged: bool,
) -> tuple[Tensor, Tensor]:
    """The sums over all chunks relative to the reference that is left, and the means."""
    count, k = local.shape
    vocab = given.weight.shape[0]
    sums, weights, decay = (torch.zeros_like(inverse) for _ in range(3))
    parts = inverse.new_empty(3, plan.tiles(plan.spans[0], given.shape), count)
    limit = _LIMITS.get(given.hidden.dtype, _LIMIT)
    for span in plan.spans:
        probability_chunk[plan.grid(count, span, given.shape)](
            *given.matrices(),
            given.bias_pointer(),
            inverse,
            local,
            reference,
            plan.memory,
            *parts,
            target,
            count,
            vocab,
            k,
            span.start,
            given.hidden.shape[1],
            given.low_width,
            *given.strides(),
            plan.memory.stride(0),
            K_BLOCK=min(4, triton.next_power_of_2(k)),
            **given.constants(),
        )
        first = span.start == 0
        weight = given.weight[span]
        add_product(found.mean_w, plan.memory, weight, decay=decay, fresh=first)
        for i, part in enumerate(b):
            assert found.mean_b is not None
            once, start = (decay, first) if i == 0 else (None, False)
            add_product(found.mean_b, plan.memory, part[span], decay=once, fresh=start)
        advance[(triton.cdiv(count, _ROWS),)](
            *parts,
            inverse,
            reference,
            sums,
            weights,
            exceeded,
            decay,
            count,
            plan.tiles(span, given.shape),
            limit,
            LAGGED=lagged,
            ROWS=_ROWS,
            num_warps=4,
        )
    share = decay / sums
    for mean in (found.mean_w, found.mean_b):
        if mean is not None:
            mean.mul_(share[:, None])
    return sums, weights


def _empty(local: Tensor, given: Operands, b: list[Tensor]) -> Direction:
    rows, k = local.shape
    like = torch.zeros if not k else torch.empty

    def new(*shape: int) -> Tensor:
        return like(shape, dtype=torch.float32, device=local.device)

    return Direction(
        new(rows, k),
        new(rows),
        new(rows),
        new(rows, given.weight.shape[1]),
        new(rows, b[0].shape[1]) if b else None,
    )
