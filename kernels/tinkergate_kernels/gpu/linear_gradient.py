"""Launcher of the recompute pass: every gradient, from the log-sum-exp that the forward left."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.gpu.linear_chunks import CHUNK, CHUNK_BYTES, Chunks, chunks
from tinkergate_kernels.gpu.linear_operands import Operands, operands, parts_of, projected
from tinkergate_kernels.gpu.linear_partials import live_rows, local_targets, placed
from tinkergate_kernels.gpu.linear_product import add_product
from tinkergate_kernels.gpu.linear_recompute import logit_gradients

_ROWS_AT_ONCE = 4096


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False
    a: bool = False
    b: bool = False


class Gradients(NamedTuple):
    """Float32, of the shapes of what they are gradients of; None where not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None


def gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    upstream: Tensor,
    logsumexp: Tensor,
    *,
    needs: Needs,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    inv_temperature: Tensor,
    softcap: float | None = None,
    vocab_start: int = 0,
    vocab_total: int | None = None,
    chunk: int = CHUNK,
    chunk_bytes: int = CHUNK_BYTES,
) -> Gradients:
    """The gradients of sum(upstream * logprob), upstream float32 [N, K], given logsumexp [N] of z
    over the whole vocabulary. The rest is as in `partials`; of a part of the vocabulary, hidden's
    and A's gradients are that part's share. Takes `chunk_bytes` for gradients of logits, which are
    in hidden's dtype; their products are summed in float32.

    Raises ValueError if a gradient of a bias or LoRA is wanted and there is none.
    """
    if needs.bias and bias is None:
        raise ValueError("needs.bias is True; there must be a bias")
    if (needs.a or needs.b) and lora is None:
        raise ValueError(f"needs are {needs}; there must be a lora")
    vocab, total = weight.shape[0], targets.shape[0]
    whole = vocab_start + vocab if vocab_total is None else vocab_total
    places = live_rows(targets, whole)
    if places is not None:
        hidden, targets, upstream, logsumexp, inv_temperature = (
            x.index_select(0, places)
            for x in (hidden, targets, upstream, logsumexp, inv_temperature)
        )
    given = operands(hidden, weight, bias, lora)
    sums = _Sums(given.hidden, weight, lora, needs)
    if targets.shape[0]:
        inside = (targets >= 0) & (targets < whole)
        scaled, unit = _scaled(torch.where(inside, upstream.float(), 0.0), given.hidden.dtype)
        row_inputs = (
            inv_temperature.contiguous(),
            logsumexp.contiguous(),
            local_targets(targets, vocab_start, vocab),
            scaled,
            scaled.sum(dim=1),
        )
        plan = chunks(given.hidden, vocab, given.shape, chunk, chunk_bytes)
        for block in plan.blocks:
            _of_block(
                given.of_rows(block), [x[block] for x in row_inputs], sums, block, plan, softcap
            )
        sums.finish(given.hidden, unit)
    d_hidden = sums.hidden if needs.hidden else None
    if d_hidden is not None and places is not None:
        d_hidden = placed(d_hidden, places, total, 0, 0.0)
    return Gradients(d_hidden, sums.weight, sums.bias, sums.a, sums.b)


class _Sums:
    """Gradients as far as the chunks have been taken in."""

    def __init__(self, hidden: Tensor, weight: Tensor, lora: Lora | None, needs: Needs) -> None:
        def zeros(wanted: bool, *shape: int) -> Tensor | None:
            return hidden.new_zeros(shape, dtype=torch.float32) if wanted else None

        self._lora = lora
        self._needs = needs
        self.hidden = zeros(needs.hidden, *hidden.shape)
        self.weight = zeros(needs.weight, *weight.shape)
        self.bias = zeros(needs.bias, weight.shape[0])
        self.a = self.b = self.pull = None
        # What is small is taken in two parts, so that only the logits' gradients are rounded.
        self._low: list[Tensor] = []
        self._table: list[Tensor] = []
        if lora is not None:
            rank = lora.a.shape[0]
            self.a = zeros(needs.a, *lora.a.shape)
            self.b = zeros(needs.b, *lora.b.shape)
            self.pull = zeros(needs.hidden or needs.a, hidden.shape[0], rank)
            self._table = parts_of(lora.b, hidden.dtype, 2)
            if needs.b:
                self._low = parts_of(projected(hidden, lora), hidden.dtype, 2)

    def add(self, chunk: Tensor, given: Operands, block: slice, span: slice) -> None:
        """Take in dx [rows of the block, tokens of the span]."""
        if self.hidden is not None:
            add_product(self.hidden[block], chunk, given.weight[span])
        if self.pull is not None:
            for table in self._table:
                add_product(self.pull[block], chunk, table[span])
        if self.weight is not None:
            add_product(self.weight[span], chunk, given.hidden, transposed=True)
        if self.b is not None:
            for low in self._low:
                add_product(self.b[span], chunk, low[block], transposed=True)
        if self.bias is not None:
            filled = chunk[: block.stop - block.start, : span.stop - span.start]
            self.bias[span] += filled.sum(dim=0, dtype=torch.float32)

    def finish(self, hidden: Tensor, unit: Tensor | None) -> None:
        """What the LoRA adds, and the scale of the upstream gradient."""
        if self.pull is not None and self._lora is not None:
            pull = self.pull.mul_(self._lora.scale)
            if self.hidden is not None:
                self.hidden.addmm_(pull, self._lora.a.float())
            if self.a is not None:
                for begin in range(0, hidden.shape[0], _ROWS_AT_ONCE):
                    rows = slice(begin, begin + _ROWS_AT_ONCE)
                    self.a.addmm_(pull[rows].T, hidden[rows].float())
        if unit is not None:
            for found in (self.hidden, self.weight, self.bias, self.a, self.b):
                if found is not None:
                    found.mul_(unit)


def _of_block(
    given: Operands,
    row_inputs: list[Tensor],
    sums: _Sums,
    block: slice,
    plan: Chunks,
    softcap: float | None,
) -> None:
    inverse, logsumexp, local, upstream, upstream_sum = row_inputs
    count, k = local.shape
    for span in plan.spans:
        logit_gradients[plan.grid(count, span, given.shape)](
            *given.matrices(),
            given.bias_pointer(),
            inverse,
            logsumexp,
            local,
            upstream,
            upstream_sum,
            plan.memory,
            count,
            given.weight.shape[0],
            k,
            span.start,
            0.0 if softcap is None else softcap,
            given.hidden.shape[1],
            given.low_width,
            *given.strides(),
            plan.memory.stride(0),
            K_BLOCK=min(4, triton.next_power_of_2(k)),
            SOFTCAP=softcap is not None,
            **given.constants(),
        )
        sums.add(plan.memory, given, block, span)


def _scaled(upstream: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The upstream gradient in units of a power of two near its largest entry, and the unit: the
    gradients of a mean over many tokens are below what float16 can hold. Others need none."""
    if dtype != torch.float16:
        return upstream, None
    _, power = torch.frexp(upstream.abs().amax())
    unit = torch.ldexp(torch.ones_like(upstream[0, 0]), power)
    return upstream / unit, unit
