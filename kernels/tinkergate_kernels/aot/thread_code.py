"""How wide the accesses of one thread are, and from which place of the source each comes.

Read from LLVM's intermediate code, the last that knows both. The machine code keeps the widths:
`machine_code.py` counts them there, and `gates.py` checks that none is narrower than here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinkergate_kernels.aot.tile_code import Place

# NVIDIA: Triton writes its accesses as PTX.
# In a string of LLVM's a tab before it reads \09.
_PTX = re.compile(r"(?:\\09|\b)(ld|st)\.(?:\w+\.)*?global[.\w:]*?(?:\.v(\d))?\.[bfus](\d+)\b")
_COPY = re.compile(r"(?:\\09|\b)cp\.async\.\w+\.shared\.global[^;]*?, 0x([0-9a-fA-F]+)")
# AMD: plain accesses to the global address space, and those through a buffer.
_PLAIN = re.compile(r"\b(load|store) (<(\d+) x (\w+)>|\w+)[ ,].*ptr addrspace\(1\)")
_BUFFER = re.compile(r"\bbuffer\.(load|store)\.(?:lds\.)?(?:v(\d+))?([a-z]+\d+)\b")
_LOCATION = re.compile(
    r"^(!\d+) = (?:distinct )?!DILocation\(line: (\d+), column: (\d+)"
    r"(?:[^)]*?inlinedAt: (!\d+))?",
    re.MULTILINE,
)
_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64, "ptr": 64}


@dataclass(frozen=True)
class ThreadAccess:
    """One access of one thread."""

    kind: str
    """ "load" or "store"."""
    bits: int
    place: Place


def read(code: str) -> list[ThreadAccess]:
    """The accesses to global memory in LLVM's intermediate code (llir), in its order."""
    locations = {
        name: (int(line), int(column), at) for name, line, column, at in _LOCATION.findall(code)
    }
    accesses = []
    for line in code.splitlines():
        if line.startswith(("declare", "!")):
            continue
        found = _width(line)
        if found is not None:
            debug = re.search(r"!dbg (!\d+)", line)
            place = _place(debug[1], locations) if debug is not None else ()
            accesses.append(ThreadAccess(*found, place))
    return accesses


def _width(line: str) -> tuple[str, int] | None:
    if (ptx := _PTX.search(line)) is not None:
        return {"ld": "load", "st": "store"}[ptx[1]], int(ptx[2] or 1) * int(ptx[3])
    if (copy := _COPY.search(line)) is not None:
        return "load", int(copy[1], 16) * 8
    if (buffer := _BUFFER.search(line)) is not None:
        return buffer[1], int(buffer[2] or 1) * _bits(buffer[3])
    if (plain := _PLAIN.search(line)) is not None:
        return plain[1], int(plain[3] or 1) * _bits(plain[4] or plain[2])
    return None


def _bits(element: str) -> int:
    digits = re.search(r"\d+$", element)
    return _BITS.get(element) or int(digits[0] if digits else 8)


def _place(name: str, locations: dict[str, tuple[int, int, str]]) -> Place:
    place: list[tuple[int, int]] = []
    while name in locations:
        line, column, name = locations[name]
        place.append((line, column))
    return tuple(place)
