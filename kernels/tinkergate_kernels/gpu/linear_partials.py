"""Launchers of the forward: partials over splits of the vocabulary, the merge, the top-k."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.gpu.linear_forward import merge_splits, split_partials
from tinkergate_kernels.gpu.linear_operands import Operands, operands
from tinkergate_kernels.partials import Merged, Partials

TOP_LIMIT = 64
"""The most entries that are kept in the pass; `linear_top.top_of_chunks` is for more."""
SPLIT = 2048
"""Tokens of one split: many programs even for few rows, and no function of the rows."""
_MERGED_ROWS = 128
_LOWEST = torch.finfo(torch.float32).min


class Top(NamedTuple):
    """The most likely tokens, most likely first; of equal ones the lower id first."""

    z: Tensor
    """[N, k] float32; -inf where there is none."""
    ids: Tensor
    """[N, k] int64; -1 where there is none."""


def split_count(vocab: int, split: int) -> int:
    """How many splits of `split` tokens a vocabulary has."""
    return -(-vocab // split)


def live_rows(targets: Tensor, vocab_total: int) -> Tensor | None:
    """The places [n] of rows with a target in [0, vocab_total); None if that is all rows. Waits for
    the targets: their number decides how much there is to do."""
    inside = ((targets >= 0) & (targets < vocab_total)).any(dim=1)
    places = inside.nonzero()[:, 0]
    return None if places.shape[0] == targets.shape[0] else places


def local_targets(targets: Tensor, vocab_start: int, vocab: int) -> Tensor:
    """int32 [N, K]: targets as places in this part of the vocabulary, -1 for those elsewhere."""
    local = targets - vocab_start
    return torch.where((local >= 0) & (local < vocab), local, -1).to(torch.int32).contiguous()


def partials(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    inv_temperature: Tensor,
    softcap: float | None = None,
    vocab_start: int = 0,
    vocab_total: int | None = None,
    split: int = SPLIT,
) -> Partials:
    """The softmax of hidden [N, D] over the tokens of weight [V, D], as sums over each `split`
    tokens. Bias [V] and LoRA's B [V, r] are of the same tokens, which begin at `vocab_start` of
    `vocab_total` (all by default) in targets int64 [N, K]. inv_temperature: float32 [N].

    A row without a target in [0, vocab_total) is not read, and is as if there were no tokens.
    """
    found, _ = partials_and_top(
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
        top=0,
    )
    return found


def partials_and_top(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    inv_temperature: Tensor,
    softcap: float | None = None,
    vocab_start: int = 0,
    vocab_total: int | None = None,
    split: int = SPLIT,
    top: int,
) -> tuple[Partials, Top]:
    """`partials`, and the `top` <= `TOP_LIMIT` largest z of this part of the vocabulary."""
    if not 0 <= top <= TOP_LIMIT:
        raise ValueError(f"top is {top}; must be from 0 to {TOP_LIMIT} in one pass")
    vocab = weight.shape[0]
    rows, k = targets.shape
    splits = split_count(vocab, split)
    whole = vocab_start + vocab if vocab_total is None else vocab_total
    places = live_rows(targets, whole)
    if places is not None:
        hidden, targets, inv_temperature = (
            x.index_select(0, places) for x in (hidden, targets, inv_temperature)
        )
    live = targets.shape[0]
    found = _empty_partials(splits, live, k, hidden)
    keys = torch.empty((splits, live, _power(top)), dtype=torch.int64, device=hidden.device)
    if live and k:
        given = operands(hidden, weight, bias, lora, top=top > 0)
        local = local_targets(targets, vocab_start, vocab)
        inverse = inv_temperature.contiguous()
        _launch(given, inverse, local, found, keys, softcap, vocab_start, split)
    best = decoded(keys, inv_temperature, top)
    if places is None:
        return found, best
    return _spread(found, places, rows), spread_top(best, places, rows)


def _launch(
    given: Operands,
    inverse: Tensor,
    local: Tensor,
    found: Partials,
    keys: Tensor,
    softcap: float | None,
    vocab_start: int,
    split: int,
) -> None:
    rows, k = local.shape
    vocab = given.weight.shape[0]
    grid = (triton.cdiv(rows, given.shape.rows) * found.maximum.shape[0],)
    split_partials[grid](
        *given.matrices(),
        given.bias_pointer(),
        inverse,
        local,
        *found,
        keys,
        rows,
        vocab,
        k,
        split,
        vocab_start,
        given.hidden.shape[1],
        given.low_width,
        0.0 if softcap is None else softcap,
        *given.strides(),
        K_BLOCK=min(4, _power(k)),
        TOP=keys.shape[2],
        SOFTCAP=softcap is not None,
        **given.constants(),
    )


def merge(found: Partials) -> Merged:
    """`tinkergate_kernels.partials.merge` in one kernel."""
    splits, rows, k = found.target.shape
    new = found.maximum.new_empty
    merged = Merged(new(rows, k), new(rows), new(rows))
    if rows:
        contiguous: list[Any] = [x.contiguous() for x in found]
        merge_splits[(triton.cdiv(rows, _MERGED_ROWS),)](
            *contiguous, *merged, rows, k, rows * k, splits, ROWS=_MERGED_ROWS, num_warps=4
        )
    return merged


def _empty_partials(splits: int, rows: int, k: int, like: Tensor) -> Partials:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=like.device)

    return Partials(
        empty(splits, rows), empty(splits, rows), empty(splits, rows), empty(splits, rows, k)
    )


def _spread(found: Partials, places: Tensor, rows: int) -> Partials:
    fills = (_LOWEST, 0.0, 0.0, -torch.inf)
    fields = [placed(x, places, rows, 1, fill) for x, fill in zip(found, fills, strict=True)]
    return Partials(*fields)


def spread_top(best: Top, places: Tensor, rows: int) -> Top:
    """The top of the rows at `places` among `rows`."""
    z = placed(best.z, places, rows, 0, -torch.inf)
    return Top(z, placed(best.ids, places, rows, 0, -1))


def placed(x: Tensor, places: Tensor, rows: int, dim: int, fill: float) -> Tensor:
    """x at `places` of dim, which becomes `rows` long, and `fill` elsewhere."""
    shape = list(x.shape)
    shape[dim] = rows
    return x.new_full(shape, fill).index_copy_(dim, places, x)


def _power(count: int) -> int:
    return triton.next_power_of_2(count) if count else 0


def decoded(keys: Tensor, inv_temperature: Tensor, top: int) -> Top:
    """The `top` largest of all splits' keys [S, N, any number]."""
    joined = keys.movedim(0, 1).flatten(1)
    kept = joined.sort(dim=1, descending=True).values[:, :top]
    there = kept >= torch.iinfo(torch.int64).min + TOP_LIMIT
    ordered = kept >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(torch.int32)
    z = bits.view(torch.float32) * inv_temperature[:, None]
    ids = 0x7FFFFFFF - (kept & 0xFFFFFFFF)
    z, ids = torch.where(there, z, -torch.inf), torch.where(there, ids, -1)
    short = top - kept.shape[1]
    if short > 0:
        z = torch.nn.functional.pad(z, (0, short), value=-torch.inf)
        ids = torch.nn.functional.pad(ids, (0, short), value=-1)
    return Top(z, ids)
