"""The loops of machine code.

A loop is told by an edge of the control flow graph that leads back to a block which every path to
the edge's start passes (its header); its body is what reaches that edge without leaving through
the header. Positions in the text do not tell it: compilers move the rare blocks of a loop, such as
waiting for a barrier, to the end of the program.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One instruction of either maker."""

    opcode: str
    text: str
    labels: tuple[str, ...] = ()
    """That stand before it."""
    jump: str | None = None
    """The label it may go on at."""
    falls_through: bool = True
    """It may go on at the next."""


@dataclass(frozen=True)
class Loop:
    """Indices of instructions."""

    body: frozenset[int]
    """With the bodies of loops inside."""
    own: frozenset[int]
    """Without them."""


def loops(program: Sequence[Instruction]) -> list[Loop]:
    """The natural loops, outer ones before those inside them."""
    blocks = _blocks(program)
    after = _successors(program, blocks)
    dominators = _dominators(after)
    before: dict[int, set[int]] = {}
    for source in dominators:
        for target in after[source]:
            before.setdefault(target, set()).add(source)
    bodies: dict[int, set[int]] = {}
    for source in dominators:
        for header in after[source] & dominators[source]:
            body = bodies.setdefault(header, {header})
            waiting = [source]
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting += before.get(block, ())
    ordered = sorted(bodies.values(), key=len, reverse=True)
    return [
        Loop(
            _indices(body, blocks),
            _indices(body.difference(*(x for x in ordered if x < body)), blocks),
        )
        for body in ordered
    ]


def _blocks(program: Sequence[Instruction]) -> list[range]:
    starts = {0, len(program)}
    for index, instruction in enumerate(program):
        if instruction.labels:
            starts.add(index)
        ends = instruction.jump is not None or not instruction.falls_through
        if ends:
            starts.add(index + 1)
    return [range(start, end) for start, end in itertools.pairwise(sorted(starts))]


def _successors(program: Sequence[Instruction], blocks: list[range]) -> list[set[int]]:
    at = {label: n for n, block in enumerate(blocks) for label in program[block[0]].labels}
    after: list[set[int]] = []
    for n, block in enumerate(blocks):
        last = program[block[-1]]
        targets = {at[last.jump]} if last.jump in at else set()
        if last.falls_through and n + 1 < len(blocks):
            targets.add(n + 1)
        after.append(targets)
    return after


def _dominators(after: list[set[int]]) -> dict[int, set[int]]:
    """Of each block that can be reached, the blocks which every path to it passes."""
    reached: list[int] = []
    waiting = [0] if after else []
    seen = set(waiting)
    while waiting:
        block = waiting.pop()
        reached.append(block)
        waiting += after[block] - seen
        seen |= after[block]
    before: dict[int, list[int]] = {block: [] for block in reached}
    for block in reached:
        for target in after[block]:
            before[target].append(block)
    order = sorted(reached)
    found = {block: set(order) for block in order}
    if order:
        found[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(found[source] for source in before[block])) | {block}
            if new != found[block]:
                found[block], changed = new, True
    return found


def _indices(body: set[int], blocks: list[range]) -> frozenset[int]:
    return frozenset(index for block in body for index in blocks[block])
