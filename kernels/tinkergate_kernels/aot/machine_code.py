"""What stands in the machine code: registers, spills, instructions, and those of the main loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tinkergate_kernels.aot.compiling import Compiled
from tinkergate_kernels.aot.control_flow import Instruction, Loop, loops
from tinkergate_kernels.aot.tile_code import TileCode

_SASS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+((?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)[^;]*);")
_SASS_JUMP = re.compile(r"`\((\.L\w+)\)")
_GCN = re.compile(r"^\t([a-z]\w+)\b(.*)")
_GCN_JUMP = re.compile(r"\.LBB\w+")

_NVIDIA_TENSOR = {"sm_80": "HMMA", "sm_90": "HGMMA|QGMMA", "sm_100": "UTC[A-Z]*MMA"}
_TENSOR = {**_NVIDIA_TENSOR, "gfx942": "v_mfma"}
_ATOMIC = re.compile(r"(ATOM|ATOMG|RED|REDG|UTMAREDG|UBLKRED)(\.|$)|(global|flat|buffer)_atomic")
_SPECIAL = re.compile(r"MUFU|v_(exp|log|rcp|rsq|sqrt|sin|cos)_")
_MULTIPLY_ADD = re.compile(r"FFMA|v_(pk_)?fma")
_SPILL = re.compile(r"(LDL|STL)(\.|$)")
_GCN_BITS = {"byte": 8, "ubyte": 8, "sbyte": 8, "short": 16, "ushort": 16, "sshort": 16}


@dataclass(frozen=True)
class GlobalAccess:
    """One instruction that loads from or stores to global memory."""

    kind: str
    """ "load" or "store"."""
    bits: int
    """Per thread."""


@dataclass(frozen=True)
class Turn:
    """One turn of the main loop in the machine code, of one thread, without loops inside it. A
    compiler may have made several turns of the source into one."""

    instructions: int
    """That take a slot of the issuing unit; on AMD those of the vector unit."""
    special: int
    """exp2, log2, reciprocals and the like."""
    tensor: int
    multiply_adds: int
    """Of float32, outside of the tensor cores."""
    bytes_loaded: int


@dataclass(frozen=True)
class MachineCode:
    """What was read off one compiled configuration."""

    registers: int
    """Per thread; on AMD vector and accumulation registers together."""
    stack_bytes: int
    """Per thread; scratch on AMD."""
    spills: int
    """Instructions that access the stack; on AMD the registers that were spilled."""
    shared_bytes: int
    instructions: int
    """In the whole program, like those of a turn."""
    special: int
    tensor_opcode: str
    """What a tensor-core instruction of the target is called."""
    tensor: int
    copies: int
    """By the copy engine (tensor descriptors)."""
    atomics: tuple[str, ...]
    """Opcodes of atomics on global memory."""
    accesses: tuple[GlobalAccess, ...]
    turn: Turn
    """Of the main loop; of the whole program if the main work is in no loop."""
    has_loop: bool


def read(compiled: Compiled, tiles: TileCode) -> MachineCode:
    """Read the assembly of one compiled configuration. `tiles` says whether its main work is in a
    loop, and whether that is products of matrices or loading."""
    nvidia = compiled.target.startswith("sm_")
    program = _sass(compiled.assembly) if nvidia else _gcn(compiled.assembly)
    tensor = re.compile(_TENSOR[compiled.target])
    everything = range(len(program))
    main = tiles.main_loop()
    products = bool(tiles.flops(main))
    found = _worth(program, loops(program), products) if main is not None else []
    candidates = [_turn(program, loop.own, tensor) for loop in found]
    whole = _turn(program, everything, tensor)
    turn = max(
        candidates,
        key=lambda t: (
            (t.tensor, t.multiply_adds) if products else (),
            t.bytes_loaded,
            t.special,
            t.instructions,
        ),
        default=whole,
    )
    if nvidia:
        told = re.search(r"REG:(\d+) STACK:(\d+)", compiled.resources)
        if told is None:
            raise RuntimeError(f"cuobjdump told no registers: {compiled.resources!r}")
        registers, stack = int(told[1]), int(told[2])
        spills = sum(1 for x in program if _SPILL.match(x.opcode))
    else:
        registers = _field(compiled.assembly, "vgpr_count")
        stack = _field(compiled.assembly, "private_segment_fixed_size")
        spills = _field(compiled.assembly, "vgpr_spill_count")
    return MachineCode(
        registers=registers,
        stack_bytes=stack,
        spills=spills,
        shared_bytes=compiled.shared_bytes,
        instructions=whole.instructions,
        special=whole.special,
        tensor_opcode=_TENSOR[compiled.target],
        tensor=whole.tensor,
        copies=sum(1 for x in program if re.match(r"UTMA(LDG|STG)|UBLKCP", x.opcode)),
        atomics=tuple(x.opcode for x in program if _ATOMIC.match(x.opcode)),
        accesses=tuple(a for x in program if (a := _access(x)) is not None),
        turn=turn,
        has_loop=bool(candidates),
    )


def _worth(program: Sequence[Instruction], found: list[Loop], products: bool) -> list[Loop]:
    """The loops that are more than waiting: those that load, or compute on floats. Of products of
    matrices the innermost: a compiler puts first and last turns of those into the loop around."""
    work = re.compile(r"LD|UTMALDG|F|HFMA|MUFU|HMMA|HGMMA|QGMMA|UTC|global_|buffer_|ds_|v_\w+_f")
    busy = [loop for loop in found if any(work.match(program[n].opcode) for n in loop.own)]
    if not products:
        return busy
    return [loop for loop in busy if not any(other.body < loop.body for other in busy)]


def _turn(
    program: Sequence[Instruction], body: Sequence[int] | frozenset[int], tensor: re.Pattern[str]
) -> Turn:
    inside = [program[n] for n in body]
    accesses = [a for x in inside if (a := _access(x)) is not None]
    return Turn(
        instructions=sum(1 for x in inside if _is_issued(x.opcode)),
        special=sum(1 for x in inside if _SPECIAL.match(x.opcode)),
        tensor=sum(1 for x in inside if tensor.match(x.opcode)),
        multiply_adds=sum(1 for x in inside if _MULTIPLY_ADD.match(x.opcode)),
        bytes_loaded=sum(a.bits for a in accesses if a.kind == "load") // 8,
    )


def _is_issued(opcode: str) -> bool:
    """Of AMD's several units only the vector unit is counted: it is the one that is short, and
    the matrix unit works beside it."""
    if opcode.islower():
        return opcode.startswith("v_") and not opcode.startswith("v_mfma")
    return opcode != "NOP"


def _access(instruction: Instruction) -> GlobalAccess | None:
    opcode = instruction.opcode
    sass = re.match(r"(LDG|LDGSTS|LD|STG|ST)(\.|$)", opcode)
    if sass is not None:
        width = re.search(r"\.(?:(?:ENL2\.)?(256|128|64)|[US](8|16))\b", opcode)
        kind = "load" if opcode.startswith("LD") else "store"
        return GlobalAccess(kind, int(width[1] or width[2]) if width is not None else 32)
    gcn = re.match(r"(?:global|buffer|flat)_(load|store)_(?:lds_)?(\w+)", opcode)
    if gcn is not None:
        return GlobalAccess(gcn[1], _gcn_bits(gcn[2]))
    return None


def _gcn_bits(suffix: str) -> int:
    words = re.fullmatch(r"dword(?:x(\d))?", suffix)
    if words is not None:
        return 32 * int(words[1] or 1)
    return _GCN_BITS[suffix.split("_")[0]]


def _sass(assembly: str) -> list[Instruction]:
    program: list[Instruction] = []
    labels: list[str] = []
    for line in assembly.splitlines():
        if line.startswith(".L"):
            labels.append(line.split(":")[0])
        elif (found := _SASS.match(line)) is not None:
            text, opcode = found[1], found[2]
            branch = _SASS_JUMP.search(text) if re.match(r"BR[AX]|JMP", opcode) else None
            always = not text.startswith("@") and opcode in ("BRA", "EXIT", "RET.REL.NODEC", "BRX")
            program.append(
                Instruction(opcode, text, tuple(labels), branch and branch[1], not always)
            )
            labels = []
    return program


def _gcn(assembly: str) -> list[Instruction]:
    program: list[Instruction] = []
    labels: list[str] = []
    for line in assembly.splitlines():
        if line.startswith(".Lfunc_end"):
            break
        if line.startswith(".LBB"):
            labels.append(line.split(":")[0])
        elif (found := _GCN.match(line.split(";")[0])) is not None:
            opcode = found[1]
            branch = _GCN_JUMP.search(found[2]) if "branch" in opcode else None
            always = opcode in ("s_branch", "s_endpgm", "s_setpc_b64")
            program.append(
                Instruction(opcode, line.strip(), tuple(labels), branch and branch[0], not always)
            )
            labels = []
    return program


def _field(assembly: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", assembly)
    if found is None:
        raise RuntimeError(f"the assembly tells no {name}")
    return int(found[1])
