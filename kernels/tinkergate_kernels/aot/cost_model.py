"""How near to the limit of a card a loop can come, counted from its machine code.

A loop needs several units of a card at once. If they overlap without a loss, the one that takes
longest decides, and

    share = time of the limit / time of the unit that takes longest

is the part of the limit that can be reached at best: 1 if the limit itself is what takes longest.
The limit is the memory's bandwidth for a kernel that streams, and the rate of the matrix units
for one that multiplies matrices. The other units are the issue of instructions and the special
functions. Latency, the caches and shared memory are not in the model, so it is a bound and no
forecast; its use is to show that a kernel is *not* limited by what should not limit it.

Per multiprocessor and clock: NVIDIA issues to 128 lanes and gives 16 results of special
functions (CUDA C++ Programming Guide, arithmetic throughput, compute capability 8.0, 9.0, 10.0);
AMD's CDNA 3 issues vector instructions to 4 x 16 lanes, special functions at a quarter of that
rate (CDNA 3 instruction set architecture guide; CDNA 3 white paper).
"""

from __future__ import annotations

from dataclasses import dataclass

from tinkergate_kernels.aot.machine_code import MachineCode, Turn
from tinkergate_kernels.aot.tile_code import TileCode


@dataclass(frozen=True)
class Card:
    """Public figures of a card. Rates are without sparsity."""

    name: str
    bandwidth: float
    """Bytes per second."""
    multiprocessors: int
    matrix_rate: float
    """FLOP/s of bf16 and fp16 with float32 sums."""
    clock: float
    """Hz, at which that rate holds."""
    float_lanes: int
    """Results of float32 multiply-adds per multiprocessor and clock."""
    lanes: int = 128
    special_lanes: int = 16
    shared_limit: int = 232448
    """Bytes of shared memory that one program can have."""

    @property
    def float_rate(self) -> float:
        """FLOP/s of float32 outside of the matrix units."""
        return 2 * self.float_lanes * self.multiprocessors * self.clock


CARDS = {
    # NVIDIA A100 80GB SXM datasheet: 2039 GB/s, 312 TFLOP/s. GA100 white paper: 108
    # multiprocessors of 64 float32 units, 1410 MHz, 163 KiB of shared memory to a block.
    "sm_80": Card("A100", 2.039e12, 108, 312e12, 1.41e9, 64, shared_limit=166912),
    # NVIDIA H100 SXM datasheet: 3.35 TB/s, 989 TFLOP/s. GH100 white paper: 132 multiprocessors of
    # 4096 FLOP per clock in the matrix units, hence the clock, and 128 float32 units.
    "sm_90": Card("H100", 3.35e12, 132, 989e12, 1.83e9, 128),
    # NVIDIA DGX B200 datasheet, a card being an eighth of it: 8 TB/s, 2.25 PFLOP/s; 148
    # multiprocessors of 8192 FLOP per clock, hence the clock, and 128 float32 units.
    "sm_100": Card("B200", 8.0e12, 148, 2250e12, 1.85e9, 128),
    # AMD Instinct MI300X datasheet: 5.3 TB/s, 1307.4 TFLOP/s and 163.4 of float32, which are 128 a
    # clock for each of 304 compute units; 2.1 GHz; 64 KiB of local data share.
    "gfx942": Card("MI300X", 5.3e12, 304, 1307.4e12, 2.1e9, 128, lanes=64, shared_limit=65536),
}

CONTRACTIONS = (576, 4096)
"""Lengths of a matrix product's sums that shares are told for: the width of a small model and of
one with 8 billion parameters."""


@dataclass(frozen=True)
class Share:
    """A prediction."""

    limit: str
    """ "memory", "matrix units" or "float32 units"."""
    share: float
    """Of the limit, at best."""
    issue: float
    """Time to issue the instructions, over the limit's time."""
    special: float
    """Time of the special functions, over the limit's time."""


@dataclass(frozen=True)
class PerElement:
    """Of the main loop."""

    instructions: float
    special: float


def per_element(code: MachineCode, tiles: TileCode, threads: int, elements: int) -> PerElement:
    """`elements` are those of a turn of the source's main loop, by a program of `threads`."""
    turns = unrolled(code, tiles, threads)
    each = threads / (elements * turns)
    return PerElement(code.turn.instructions * each, code.turn.special * each)


def unrolled(code: MachineCode, tiles: TileCode, threads: int) -> int:
    """How many turns of the source's loop a turn of the machine code's loop is, told by the bytes
    that they load. 1 where nothing is loaded by the threads themselves."""
    asked = tiles.bytes_loaded(tiles.main_loop()) / threads
    if not (code.has_loop and asked and code.turn.bytes_loaded):
        return 1
    return max(1, round(code.turn.bytes_loaded / asked))


def predict(
    target: str, code: MachineCode, tiles: TileCode, threads: int, contraction: int = 4096
) -> Share | None:
    """The share of the limit that the program can reach at best, on the target's card. None if it
    moves nothing in its main loop.

    A kernel of matrix products is taken with the code outside of the loop, which weighs more the
    shorter the sums are: `contraction` is their length."""
    card = CARDS[target]
    loop = tiles.main_loop()
    turn, turns = code.turn, unrolled(code, tiles, threads)
    instructions, special = turn.instructions / turns, turn.special / turns
    products = [p for p in tiles.products if p.loop == loop]
    if products:
        rounds = contraction / products[0].contraction
        matrix = products[0].bits <= 16
        rate = card.matrix_rate if matrix else card.float_rate
        seconds = rounds * tiles.flops(loop) / rate
        if loop is not None:
            outside = _outside(code, turn)
            instructions = rounds * instructions + outside[0]
            special = rounds * special + outside[1]
        limit = "matrix units" if matrix else "float32 units"
    else:
        seconds = tiles.bytes_moved(loop) / card.bandwidth
        limit = "memory"
    if not seconds:
        return None
    lanes = threads / (card.multiprocessors * card.clock)
    issue = instructions * lanes / card.lanes / seconds
    functions = special * lanes / card.special_lanes / seconds
    return Share(limit, 1 / max(1.0, issue, functions), issue, functions)


def _outside(code: MachineCode, turn: Turn) -> tuple[int, int]:
    return code.instructions - turn.instructions, code.special - turn.special
