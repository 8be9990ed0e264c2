"""What is read from Triton's intermediate code and from LLVM's."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tinkergate_kernels.aot import thread_code, tile_code

CODE = """
#loc = loc("k.py":1:1)
module {
  tt.func public @k(%x: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("x"(#loc))) attributes {noinline = false} {
    %v = tt.load %x : !tt.ptr<f32> loc(#loc2)
    scf.for %i = %a to %b step %c : i32 {
      %p = tt.load %q : tensor<128x64x!tt.ptr<bf16>> loc(#loc5)
      scf.for %j = %a to %b step %c : i32 {
        %l = tt.load %q, %m, %o {cache = 1 : i32} : tensor<128x64x!tt.ptr<bf16>> loc(#loc2)
        %r = tt.descriptor_load %d[%e, %f] : !tt.tensordesc<64x128xbf16> -> tensor<64x128xbf16> loc(#loc2)
        %t = tt.dot %l, %r, %u, inputPrecision = tf32 : tensor<128x64xbf16> * tensor<64x128xbf16> -> tensor<128x128xf32> loc(#loc3)
        scf.if %g {
          tt.store %q, %l, %m : tensor<128x64x!tt.ptr<bf16>> loc(#loc2)
        } loc(#loc2)
      } {tt.num_stages = 3 : i32} loc(#loc2)
      %w = tt.load %q, %m : tensor<128x64x!tt.ptr<bf16>> loc(#loc2)
    } loc(#loc2)
    %n = scf.while (%h = %a) : (i32) -> i32 {
      scf.condition(%y) %h : i32 loc(#loc2)
    } do {
    ^bb0(%h: i32 loc(#loc2)):
      tt.store %q, %l : tensor<8x!tt.ptr<i64>> loc(#loc2)
      scf.yield %h : i32 loc(#loc2)
    } loc(#loc2)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
#loc2 = loc("k.py":7:3)
#loc3 = loc("name"(#loc2))
#loc4 = loc("k.py":20:9)
#loc5 = loc(callsite(#loc3 at #loc6))
#loc6 = loc(callsite(#loc4 at #loc4))
"""  # noqa: E501


def test_accesses_stand_in_their_loops_and_places() -> None:
    tiles = tile_code.read(CODE)
    told = [(a.kind, a.elements, a.bits, a.masked, a.loop, a.branch) for a in tiles.accesses]
    assert told == [
        ("load", 1, 32, False, None, False),
        ("load", 8192, 16, False, 1, False),
        ("load", 8192, 16, True, 2, False),
        ("load", 8192, 16, False, 2, False),
        ("store", 8192, 16, True, 2, True),
        ("load", 8192, 16, True, 1, False),
        ("store", 8, 64, False, 3, False),
    ]
    assert [access.descriptor for access in tiles.accesses].index(True) == 3
    assert tiles.accesses[1].place == ((7, 3), (20, 9), (20, 9))
    assert tiles.outer_loops == {1}
    assert tiles.main_loop() == 2


def test_products_count_their_operations() -> None:
    (product,) = tile_code.read(CODE).products
    assert product.flops == 2 * 128 * 64 * 128
    assert (product.contraction, product.bits, product.loop) == (64, 16, 2)


def test_full_tiles_must_be_wide_and_tails_need_not() -> None:
    tiles = tile_code.read(CODE)
    must = [tiles.accesses.index(access) for access in tiles.must_be_wide(threads=128)]
    # Not the scalar, the descriptor's, or the few integers; and the masked load of the outer loop
    # is the tail of that in the same loop. The masked load of the inner loop does every turn's
    # work, and the store in the branch has no unmasked twin.
    assert must == [1, 2, 4]
    assert tiles.must_be_wide(threads=4096) == []


@pytest.mark.parametrize(
    ("line", "kind", "bits"),
    [
        ('asm "mov.u32 $0, 0;\\0A\\09ld.global.v4.b32 { $0 }, [ $4 + 0 ];"', "load", 128),
        ('asm "@$3 ld.global.L1::evict_first.v2.b64 { $0 }"', "load", 128),
        ('asm "st.global.b16 [ $1 + 0 ], { $0 };"', "store", 16),
        ('asm "cp.async.cg.shared.global [ $0 + 0 ], [ $1 + 0 ], 0x10, $2;"', "load", 128),
        ('asm "cp.async.ca.shared.global [ $0 + 0 ], [ $1 + 0 ], 0x4, $2;"', "load", 32),
        ("%1 = load <8 x bfloat>, ptr addrspace(1) %p, align 16", "load", 128),
        ("%1 = load float, ptr addrspace(1) %p, align 4", "load", 32),
        ("store <1 x i16> %v, ptr addrspace(1) %p, align 2", "store", 16),
        ("call <4 x i32> @llvm.amdgcn.raw.ptr.buffer.load.v4i32(ptr addrspace(8) %p", "load", 128),
        ("call void @llvm.amdgcn.raw.ptr.buffer.store.f32(float %v", "store", 32),
    ],
)
def test_widths_of_a_threads_accesses(line: str, kind: str, bits: int) -> None:
    code = f"""  {line}, !dbg !7
!7 = !DILocation(line: 4, column: 2, scope: !1, inlinedAt: !9)
!9 = distinct !DILocation(line: 30, column: 8, scope: !1)
"""
    (access,) = thread_code.read(code)
    assert (access.kind, access.bits) == (kind, bits)
    assert access.place == ((4, 2), (30, 8))


def test_what_is_not_global_is_no_access() -> None:
    code = """  store <4 x float> %v, ptr addrspace(3) %p, align 16, !dbg !7
  asm "ld.shared.v4.b32 { $0 }, [ $4 ];"
declare <4 x i32> @llvm.amdgcn.raw.ptr.buffer.load.v4i32(ptr addrspace(8))
"""
    assert thread_code.read(code) == []
