"""Sums over the datums of packed tokens, in a fixed order.

Work is cut into tiles of tokens, whatever datums they belong to, so loads are aligned and wide.
What a tile adds to a datum goes to slot `tile + datum`: going through the tokens in order, each
step to a new tile or datum raises that number, so no two pairs share a slot, and the slots of a
datum follow one another. `datum_sums` adds each datum's up in that order, in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinkergate_kernels.gpu.shipped import Bounds, Shipped
from tinkergate_kernels.losses.problem import Problem

TILE = 2048
"""Tokens of a program: with 8 warps, two loads of 128 bits a thread and array."""
WARPS = 8
CHUNK = 128
"""Slots that are added up at once."""


@triton.jit
def read(pointer, at, inside, FULL: tl.constexpr):
    """Entries of a tile; 0 beyond the end."""
    if FULL:
        return tl.load(pointer + at)
    # The first entry is always there. A mask a load would take registers that are not there.
    return tl.where(inside, tl.load(pointer + tl.where(inside, at, 0)), 0.0)


@triton.jit
def datum_tiles(
    Logprobs,
    Other,
    Mask,
    Offsets,
    First,
    Last,
    Partials,
    first_tile,
    tokens,
    slots,
    KIND: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What each tile adds to the sums of its datums. gspo: of lp - lq and of 1, where the mask is
    not 0. dpo: of w (lp - ref)."""
    tile = first_tile + tl.program_id(0).to(tl.int64)
    at = tile * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    mask = read(Mask, at, inside, FULL)
    active = mask != 0.0
    difference = read(Logprobs, at, inside, FULL) - read(Other, at, inside, FULL)
    terms = tl.where(active, difference if KIND == "gspo" else mask * difference, 0.0)
    for datum in tl.range(tl.load(First + tile), tl.load(Last + tile) + 1):
        mine = (at >= tl.load(Offsets + datum)) & (at < tl.load(Offsets + datum + 1))
        tl.store(Partials + tile + datum, tl.sum(tl.where(mine, terms, 0.0)))
        if KIND == "gspo":
            count = tl.sum(tl.where(mine & active, 1.0, 0.0))
            tl.store(Partials + slots + tile + datum, count)


@triton.jit
def datum_sums(Partials, Offsets, Sums, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """The slots of each datum, added up in order, in float64."""
    datum = tl.program_id(0).to(tl.int64)
    start = tl.load(Offsets + datum)
    end = tl.load(Offsets + datum + 1)
    first = start // BLOCK + datum
    # An empty datum has no slots.
    stop = tl.where(end > start, (end - 1) // BLOCK + datum + 1, first)
    total = tl.zeros((CHUNK,), tl.float64)
    lane = tl.arange(0, CHUNK)
    for slot in tl.range(first, stop, CHUNK):
        total += tl.load(Partials + slot + lane, mask=slot + lane < stop, other=0.0).to(tl.float64)
    tl.store(Sums + datum, tl.sum(total))


class Plan(NamedTuple):
    """How the tokens of a problem are cut."""

    tokens: int
    datums: int
    tiles: int
    first: Tensor
    """Int64 [tiles]: the datum of each tile's first token."""
    last: Tensor
    """Int64 [tiles]: the datum of each tile's last token."""

    @property
    def slots(self) -> int:
        """How many slots there may be."""
        return self.tiles + self.datums

    def launches(self) -> list[tuple[int, int, bool]]:
        """(first tile, tiles, whether they are full)."""
        full = self.tokens // TILE
        both = [(0, full, True), (full, self.tiles - full, False)]
        return [each for each in both if each[1]]

    def sums(self, partials: Tensor, offsets: Tensor) -> Tensor:
        """The sums of partials [slots] over each datum, float64 [S]."""
        sums = torch.empty(self.datums, dtype=torch.float64, device=partials.device)
        if self.datums:
            datum_sums[(self.datums,)](
                partials, offsets, sums, BLOCK=TILE, CHUNK=CHUNK, num_warps=4
            )
        return sums


def plan_of(problem: Problem) -> Plan:
    """How a problem is cut."""
    tokens = problem.logprobs.numel()
    starts = torch.arange(0, tokens, TILE, device=problem.offsets.device)
    ends = (starts + TILE - 1).clamp(max=tokens - 1)
    first, last = (
        torch.searchsorted(problem.offsets, each, right=True) - 1 for each in (starts, ends)
    )
    return Plan(tokens, problem.offsets.numel() - 1, starts.numel(), first, last)


def sums_of_datums(problem: Problem, plan: Plan, other: Tensor, mask: Tensor) -> list[Tensor]:
    """What `datum_tiles` says, of each datum: float64 [S] each."""
    kind = problem.spec.name
    columns = 2 if kind == "gspo" else 1
    partials = torch.empty(columns, plan.slots, device=problem.logprobs.device)
    for first_tile, count, full in plan.launches():
        datum_tiles[(count,)](
            problem.logprobs,
            other,
            mask,
            problem.offsets,
            plan.first,
            plan.last,
            partials,
            first_tile,
            plan.tokens,
            plan.slots,
            KIND=kind,
            FULL=full,
            BLOCK=TILE,
            num_warps=WARPS,
        )
    return [plan.sums(column, problem.offsets) for column in partials]


def _shipped() -> list[Shipped]:
    arrays = ("Logprobs", "Other", "Mask")
    sums = [
        Shipped(
            name=f"datum_tiles {kind}{'' if full else ', last tile'}",
            kernel=datum_tiles,
            signature={
                **dict.fromkeys(arrays, "*fp32"),
                **dict.fromkeys(("Offsets", "First", "Last"), "*i64"),
                "Partials": "*fp32",
                **dict.fromkeys(("first_tile", "tokens", "slots"), "i32"),
            },
            constants={"KIND": kind, "FULL": full, "BLOCK": TILE},
            divisible_by_16=arrays,
            num_warps=WARPS,
            bounds=Bounds(wide_loads=full),
        )
        for kind in ("gspo", "dpo")
        for full in (True, False)
    ]
    return [
        *sums,
        Shipped(
            name="datum_sums",
            kernel=datum_sums,
            signature={"Partials": "*fp32", "Offsets": "*i64", "Sums": "*fp64"},
            constants={"BLOCK": TILE, "CHUNK": CHUNK},
            # Slots of a datum begin anywhere.
            bounds=Bounds(wide_loads=False),
        ),
    ]


SHIPPED: tuple[Shipped, ...] = tuple(_shipped())
