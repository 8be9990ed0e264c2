"""The rules that the machine code of a shipped configuration is held to."""

from __future__ import annotations

from dataclasses import dataclass

from tinkergate_kernels.aot import cost_model, machine_code, thread_code, tile_code
from tinkergate_kernels.aot.compiling import Compiled, compile_for
from tinkergate_kernels.aot.cost_model import PerElement
from tinkergate_kernels.aot.machine_code import MachineCode
from tinkergate_kernels.aot.tile_code import WIDE_BITS, Access, TileCode
from tinkergate_kernels.gpu.shipped import Bounds, Shipped


@dataclass(frozen=True)
class Narrow:
    """An access of a full tile that is not as wide as it could be."""

    access: Access
    bits: int

    def __str__(self) -> str:
        (line, column), *callers = self.access.place or ((0, 0),)
        called = "".join(f", called at {a}:{b}" for a, b in callers)
        return (
            f"{self.access.kind} of {self.access.elements} x {self.access.bits} bits at source "
            f"{line}:{column}{called}"
        )


@dataclass(frozen=True)
class Reading:
    """One configuration on one target: everything that the rules and the report look at."""

    configuration: Shipped
    target: str
    code: MachineCode
    tiles: TileCode
    threads: int
    narrow: tuple[Narrow, ...]
    """The widths of accesses that must be wide and are not."""
    full: int
    """Accesses that must be wide, in the source."""
    narrowest_asked: dict[str, int]
    """By kind, the narrowest access that one thread was to make."""

    def per_element(self) -> PerElement | None:
        """Of the main loop; None where the configuration counts no elements."""
        elements = self.configuration.elements_per_loop
        if not elements:
            return None
        return cost_model.per_element(self.code, self.tiles, self.threads, elements)


@dataclass(frozen=True)
class Failure:
    """A rule that a configuration breaks."""

    name: str
    target: str
    figure: str
    rule: str

    def __str__(self) -> str:
        return f"{self.name} on {self.target}: {self.figure}; {self.rule}"


def read(configuration: Shipped, target: str) -> Reading:
    """Compile a configuration and read its machine code."""
    return reading(configuration, compile_for(configuration, target))


def reading(configuration: Shipped, compiled: Compiled) -> Reading:
    """Read the machine code of what was compiled."""
    tiles = tile_code.read(compiled.tile_code)
    asked = thread_code.read(compiled.thread_code)
    must = tiles.must_be_wide(compiled.threads)
    narrow = [
        Narrow(access, bits)
        for access in must
        if (bits := min((a.bits for a in asked if _same(a, access)), default=0)) < WIDE_BITS
    ]
    narrowest = {
        kind: min((a.bits for a in asked if a.kind == kind), default=WIDE_BITS)
        for kind in ("load", "store")
    }
    return Reading(
        configuration=configuration,
        target=compiled.target,
        code=machine_code.read(compiled, tiles),
        tiles=tiles,
        threads=compiled.threads,
        narrow=tuple(narrow),
        full=len(must),
        narrowest_asked=narrowest,
    )


def _same(asked: thread_code.ThreadAccess, access: Access) -> bool:
    return asked.kind == access.kind and asked.place == access.place


def failures(reading: Reading) -> list[Failure]:
    """The rules that a configuration breaks on a target, with the figures."""
    code, bounds = reading.code, reading.configuration.bounds
    broken = []
    if code.spills or code.stack_bytes:
        broken.append(
            (
                f"{code.spills} spills and {code.stack_bytes} bytes of stack",
                "registers must not spill and there must be no stack",
            )
        )
    limit = cost_model.CARDS[reading.target].shared_limit
    if code.shared_bytes > limit:
        broken.append(
            (f"{code.shared_bytes} bytes of shared memory", f"the card has {limit} for a program")
        )
    if code.atomics:
        broken.append((f"global atomics {', '.join(code.atomics)}", "there must be none"))
    if bounds.dot and not code.tensor:
        broken.append((f"0 instructions {code.tensor_opcode}", "a dot must use tensor cores"))
    if bounds.wide_loads:
        broken += _widths(reading)
    broken += _counts(reading, bounds)
    name = reading.configuration.name
    return [Failure(name, reading.target, figure, rule) for figure, rule in broken]


def _widths(reading: Reading) -> list[tuple[str, str]]:
    broken = [
        (f"{narrow} is {narrow.bits or 'of unknown'} bits wide", f"must be {WIDE_BITS} bits")
        for narrow in reading.narrow
    ]
    for kind, bits in reading.narrowest_asked.items():
        # What the assembler did must not undo what was read from the code before it.
        found = min((a.bits for a in reading.code.accesses if a.kind == kind), default=bits)
        if found < bits:
            broken.append(
                (f"a {kind} of {found} bits", f"the narrowest before the assembler has {bits}")
            )
    return broken


def _counts(reading: Reading, bounds: Bounds) -> list[tuple[str, str]]:
    found = reading.per_element()
    if found is None or not reading.target.startswith("sm_"):
        return []
    limits = [
        ("instructions", found.instructions, bounds.instructions_per_element),
        ("special functions", found.special, bounds.special_functions_per_element),
    ]
    return [
        (f"{figure:.2f} {what} per element", f"the bound is {bound:g}")
        for what, figure, bound in limits
        if bound is not None and figure > bound
    ]
