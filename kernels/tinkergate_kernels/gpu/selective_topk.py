"""The largest logits seen so far, kept beside the sums of the same pass."""

from __future__ import annotations

import triton
import triton.language as tl

LEAST_KEY = tl.constexpr(-(2**63))


@triton.jit
def pack(x, at):
    """int64 keys in the order of the floats x, those of equal ones by falling place."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return (ordered << 32) | (0x7FFFFFFF - at)


@triton.jit
def unpack(key):
    """The places and the floats of keys."""
    ordered = (key >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return 0x7FFFFFFF - (key & 0x7FFFFFFF), bits.to(tl.float32, bitcast=True)


@triton.jit
def none_yet(KEPT: tl.constexpr):
    """Different keys below those of all logits."""
    return LEAST_KEY + tl.arange(0, KEPT).to(tl.int64)


@triton.jit
def keep_best(best, x, at, TILE: tl.constexpr):
    """The largest keys of those before and of a tile of logits, in any order.

    One at a time, the tile's largest takes the place of the least: in a row in no order that
    happens k log(V / k) times or so, and mostly in its first tiles. Sorting the tile would cost
    a hundred times as many instructions.
    """
    least = tl.min(best, 0)
    if pack(tl.max(tl.reshape(x, (TILE,)), 0), 0) > least:
        keys = tl.reshape(pack(x, at), (TILE,))
        largest = tl.max(keys, 0)
        while largest > least:
            best = tl.where(best == least, largest, best)
            keys = tl.where(keys == largest, LEAST_KEY, keys)
            least = tl.min(best, 0)
            largest = tl.max(keys, 0)
    return best
