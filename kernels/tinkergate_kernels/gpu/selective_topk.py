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
    return (ordered << 32) | (0x7FFFFFFF - at).to(tl.int64)


@triton.jit
def unpack(key):
    """The places and the floats of keys."""
    ordered = (key >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return 0x7FFFFFFF - (key & 0x7FFFFFFF), bits.to(tl.float32, bitcast=True)


@triton.jit
def keep_best(best, x, at, TILE: tl.constexpr, KEPT: tl.constexpr):
    """The KEPT largest keys, falling, of those before and a tile of logits. Most tiles hold none
    of them, which their largest logit tells."""
    _, least = unpack(tl.min(best, 0))
    largest = tl.max(tl.reshape(x, (TILE,)), 0)
    if (largest >= least) | (tl.min(best, 0) == LEAST_KEY):
        found = tl.topk(tl.reshape(pack(x, at), (TILE,)), KEPT)
        # Of two falling lists, the larger of each pair from opposite ends are the largest of both.
        best = tl.sort(tl.maximum(best, tl.flip(found)), descending=True)
    return best
