"""What a kernel asks for in tiles: its accesses to global memory, and its matrix products.

Read from Triton's intermediate code, where a load of a tile is one operation. Where it stands in
the source is the thread that leads from there to the instructions that it became.

**Which accesses must be wide.** A tile that gives each thread of the program 16 bytes or more can
be accessed 128 bits at a time; a smaller one (the targets of a few rows, a scalar) cannot and is
not looked at. A masked access is the tail of a tile, and may be narrower, if an unmasked access of
the same kind and shape is there too and it itself stands outside of the innermost loops or in a
branch of one. A masked access with no such twin does the work of every tile, and must be wide.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

Place = tuple[tuple[int, int], ...]
"""Line and column in the source, then of the call that led there, and so on outwards."""

_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.MULTILINE)
_OPERATION = re.compile(r"\b(tt\.(?:load|store|descriptor_load|descriptor_store|dot))\b (.*)")
_TILE = re.compile(r"tensor<((?:\d+x)*)(!tt\.ptr<(\w+)>|\w+)")
_BITS = {"i1": 8, "f8E4M3FN": 8, "f8E5M2": 8, "bf16": 16}
WIDE_BITS = 128


@dataclass(frozen=True)
class Access:
    """A load or a store of a tile."""

    kind: str
    """ "load" or "store"."""
    elements: int
    bits: int
    """Of one element."""
    masked: bool
    descriptor: bool
    """By a tensor descriptor: the copy engine's own width, which is full."""
    loop: int | None
    """Of the innermost loop, by its number; None outside of loops."""
    branch: bool
    """In a branch inside that loop."""
    place: Place

    @property
    def bytes(self) -> int:
        """Of the tile."""
        return self.elements * self.bits // 8


@dataclass(frozen=True)
class Product:
    """A matrix product of two tiles."""

    flops: int
    contraction: int
    """The length of the sums."""
    bits: int
    """Of one element of the operands."""
    loop: int | None


@dataclass(frozen=True)
class TileCode:
    """The accesses and products of a kernel, in the order of the code."""

    accesses: tuple[Access, ...]
    products: tuple[Product, ...]
    outer_loops: frozenset[int]
    """Loops with another inside."""

    def must_be_wide(self, threads: int) -> list[Access]:
        """The accesses that the module's rule holds to 128 bits, for a program of `threads`."""
        return [
            access
            for access in self.accesses
            if not access.descriptor
            and access.bytes * 8 >= WIDE_BITS * threads
            and not self._is_tail(access)
        ]

    def main_loop(self) -> int | None:
        """The loop with the most products, then the most bytes, without those of loops inside;
        None, which is the code outside of loops, if there is more of that there."""
        inside = {a.loop for a in self.accesses} | {p.loop for p in self.products}
        loops = sorted(loop for loop in inside if loop is not None)
        return max([*loops, None], key=lambda loop: (self.flops(loop), self.bytes_loaded(loop)))

    def flops(self, loop: int | None) -> int:
        """Of the products in a turn of the loop."""
        return sum(p.flops for p in self.products if p.loop == loop)

    def bytes_loaded(self, loop: int | None) -> int:
        """In a turn of the loop, without tails and branches."""
        return self._bytes(loop, ("load",))

    def bytes_moved(self, loop: int | None) -> int:
        """Loaded and stored in a turn of the loop, without tails and branches."""
        return self._bytes(loop, ("load", "store"))

    def _bytes(self, loop: int | None, kinds: tuple[str, ...]) -> int:
        here = [a for a in self.accesses if a.loop == loop and a.kind in kinds]
        return sum(a.bytes for a in here if not (a.branch or self._is_tail(a)))

    def _is_tail(self, access: Access) -> bool:
        def tile(of: Access) -> tuple[str, int, int]:
            return of.kind, of.elements, of.bits

        innermost = access.loop is not None and access.loop not in self.outer_loops
        return (
            access.masked
            and (access.branch or not innermost)
            and any(tile(other) == tile(access) for other in self.accesses if not other.masked)
        )


def read(code: str) -> TileCode:
    """Read Triton's intermediate code (ttir)."""
    aliases = dict(_ALIAS.findall(code))
    accesses: list[Access] = []
    products: list[Product] = []
    # What each open brace belongs to: a loop by its number, or a branch, or anything else.
    regions: list[int | str] = []
    loops = 0
    outer: set[int] = set()
    for line in code.splitlines():
        found = _OPERATION.search(line)
        numbers = [x for x in regions if isinstance(x, int)]
        loop = numbers[-1] if numbers else None
        if found is not None and found[1] == "tt.dot":
            products.append(_product(found[2], loop))
        elif found is not None:
            after = regions[regions.index(loop) + 1 :] if loop is not None else []
            place = _place(line, aliases)
            accesses.append(_access(found[1], found[2], loop, "branch" in after, place))
        closed: int | str = "other"
        # Attributes open and close on one line.
        bare = re.sub(r"\{[^{}]*\}", "", line)
        for brace in re.findall(r"[{}]", bare):
            if brace == "}":
                closed = regions.pop()
            elif re.search(r"\bscf\.(for|while)\b", bare):
                loops += 1
                outer.update(numbers)
                regions.append(loops)
            elif re.search(r"\bdo \{", bare):
                regions.append(closed)  # the test and the body of a while loop are the one loop
            else:
                regions.append("branch" if re.search(r"\bscf\.if\b|\belse \{", bare) else "other")
    return TileCode(tuple(accesses), tuple(products), frozenset(outer))


def _access(operation: str, rest: str, loop: int | None, branch: bool, place: Place) -> Access:
    operands, _, types = rest.partition(" : ")
    kind = "load" if operation.endswith("load") else "store"
    descriptor = "descriptor" in operation
    named = len(re.findall(r"%[\w#]+", re.sub(r"\{.*\}", "", operands)))
    tiles = _TILE.findall(types)
    # A scalar's pointer stands alone: not a tensor, and of one element.
    shape, element, pointee = tiles[-1 if descriptor else 0] if tiles else ("", "", "")
    extents = [int(extent) for extent in shape.split("x") if extent]
    return Access(
        kind=kind,
        elements=math.prod(extents) if tiles else 1,
        bits=_bits(pointee or element) if tiles else 32,
        masked=not descriptor and named > (1 if kind == "load" else 2),
        descriptor=descriptor,
        loop=loop,
        branch=branch,
        place=place,
    )


def _product(rest: str, loop: int | None) -> Product:
    left, right = _TILE.findall(rest)[:2]
    *batch, rows, contraction = (int(extent) for extent in left[0].split("x") if extent)
    columns = int(right[0].split("x")[-2])
    flops = 2 * math.prod(batch) * rows * contraction * columns
    return Product(flops, contraction, _bits(left[1]), loop)


def _bits(element: str) -> int:
    digits = re.search(r"\d+$", element)
    return _BITS.get(element) or int(digits[0] if digits else 8)


def _place(line: str, aliases: dict[str, str]) -> Place:
    named = re.findall(r"loc\((#loc\d*)\)\s*$", line)
    return _resolve(named[-1], aliases) if named else ()


def _resolve(location: str, aliases: dict[str, str]) -> Place:
    told = aliases.get(location, location)
    call = re.fullmatch(r"callsite\((#loc\d*) at (#loc\d*)\)", told)
    if call is not None:
        return _resolve(call[1], aliases) + _resolve(call[2], aliases)
    inner = re.fullmatch(r'".*"\((#loc\d*)\)', told)
    if inner is not None:
        return _resolve(inner[1], aliases)
    point = re.fullmatch(r'".*":(\d+):(\d+)', told)
    return ((int(point[1]), int(point[2])),) if point is not None else ()
