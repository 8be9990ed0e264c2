"""The harness finds what it is for in kernels that are wrong, and nothing in those that are not."""

# ruff: noqa: N803

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.interpreter import GridExecutor  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402
from triton_harness import Fault, TritonHarness, same_in_any_order  # noqa: E402
from triton_interpreter import builder, interpreted  # noqa: E402


@triton.jit
def _double(x):
    return x + x


@triton.jit
def copy_kernel(source, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, _double(tl.load(source + at, mask=at < count)), mask=at < count)


@triton.jit
def unmasked_kernel(source, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(source + at))


@triton.jit
def overlapping_kernel(source, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(source + at))


@triton.jit
def twice_in_a_store_kernel(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK) // 2, tl.full((BLOCK,), 1.0, tl.float32))


@triton.jit
def atomic_kernel(out):
    tl.atomic_add(out, 1.0)


@triton.jit
def chain_kernel(out):
    """Each program reads what the one before it wrote."""
    place = tl.program_id(0)
    before = tl.load(out + place - 1, mask=place > 0, other=0.0)
    tl.store(out + place, before * 2 + 1)


@triton.jit
def last_wins_kernel(out):
    tl.store(out, tl.program_id(0).to(tl.float32))


@triton.jit
def inplace_kernel(x, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at) * 2)


@triton.jit
def neighbour_kernel(x, BLOCK: tl.constexpr):
    """In place, but a program reads what is another's to write."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at) + tl.load(x + 3))


@triton.jit
def row_sum_kernel(x, out, stride, width, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0)
    offset = row.to(tl.int64) * stride if WIDE else row * stride
    at = tl.arange(0, BLOCK)
    numbers = tl.load(x + offset + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(numbers, 0))


@triton.jit
def dot_kernel(a, b, out, SIDE: tl.constexpr):
    at = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)).to(out.dtype.element_ty))


@triton.jit
def bf16_arithmetic_kernel(x, out):
    tl.store(out, tl.load(x) + tl.load(x))


def test_a_good_kernel_passes_and_its_bytes_are_counted() -> None:
    source = torch.randn(1000)
    with TritonHarness() as harness:
        out = torch.empty(1000)
        copy_kernel[(4,)](source, out, 1000, BLOCK=256)
    assert torch.equal(out, source * 2)
    assert harness.programs == 4
    assert harness.read == {"source": source.nbytes}
    assert harness.written == {"out": out.nbytes}


def out_of_bounds() -> None:
    # A view, so that nothing else lies behind its end.
    unmasked_kernel[(4,)](torch.zeros(256)[:100], torch.zeros(128), BLOCK=32)


def out_of_bounds_by_one() -> None:
    copy_kernel[(1,)](torch.zeros(100), torch.zeros(99), 100, BLOCK=128)


def into_the_gap_of_a_view() -> None:
    copy_kernel[(1,)](torch.zeros(4, 8)[:, :7].T, torch.zeros(8), 8, BLOCK=8)


def every_element_twice() -> None:
    overlapping_kernel[(2,)](torch.zeros(33), torch.zeros(33), BLOCK=32)


def left_unwritten() -> None:
    copy_kernel[(1,)](torch.zeros(100), torch.zeros(101), 100, BLOCK=128)


BAD: list[tuple[Callable[[], Any], str]] = [
    (out_of_bounds, r"\(3, 0, 0\) reads outside of all tensors: 28 addresses.* source \[100\]"),
    (
        out_of_bounds_by_one,
        r"writes outside of all tensors: 1 addresses, the first 396 .*out",
    ),
    (into_the_gap_of_a_view, r"reads outside of all tensors: 1 addresses, the first 28 bytes"),
    (every_element_twice, r"\(1, 0, 0\) writes out: an element that was written before"),
    (left_unwritten, "1 of 101 elements of out unwritten"),
    (lambda: twice_in_a_store_kernel[(1,)](torch.zeros(8), BLOCK=16), "twice in one store"),
    (lambda: atomic_kernel[(1,)](torch.zeros(1)), "atomic"),
    (lambda: chain_kernel[(4,)](torch.zeros(4)), "reads out: an element that the same launch has"),
    (lambda: last_wins_kernel[(4,)](torch.zeros(1)), "writes out: an element that was written"),
    (lambda: inplace_kernel[(4,)](torch.zeros(32), BLOCK=8), "x: an element that the same launch"),
]


@pytest.mark.parametrize(("launch", "message"), BAD)
def test_a_bad_kernel_is_found_out(launch: Callable[[], Any], message: str) -> None:
    with pytest.raises(Fault, match=message), TritonHarness():
        launch()


def test_a_faulty_access_does_not_happen() -> None:
    whole = torch.zeros(128)
    with pytest.raises(Fault), TritonHarness():
        unmasked_kernel[(4,)](torch.ones(128), whole[:100], BLOCK=32)
    assert whole[:96].all()
    assert not whole[96:].any()


@pytest.mark.parametrize("order", [None, 1])
def test_in_place_each_element_belongs_to_one_program(order: int | None) -> None:
    x = torch.ones(32)
    with TritonHarness(inplace=["x"], order=order) as harness:
        inplace_kernel[(4,)](x, BLOCK=8)
    assert harness.read["x"] == harness.written["x"] == x.nbytes
    with pytest.raises(Fault, match="x: an element"), TritonHarness(inplace=["x"], order=order):
        neighbour_kernel[(4,)](x, BLOCK=8)


def test_launches_may_read_what_earlier_ones_wrote_and_write_again_only_if_reused() -> None:
    source, middle, out = torch.randn(8), torch.empty(8), torch.empty(8)
    with TritonHarness(reused=["out"]):
        copy_kernel[(1,)](source, middle, 8, BLOCK=8)
        copy_kernel[(1,)](middle, out, 8, BLOCK=8)
        copy_kernel[(1,)](source, out, 8, BLOCK=8)
    with TritonHarness():
        copy_kernel[(1,)](source, out, 8, BLOCK=8)
        with pytest.raises(Fault, match="another launch has written"):
            copy_kernel[(1,)](source, out, 8, BLOCK=8)


def test_parts_written_by_several_launches_make_a_whole() -> None:
    source, out = torch.randn(8), torch.empty(8)
    with TritonHarness():
        for part in (slice(0, 3), slice(3, 8)):
            copy_kernel[(1,)](source[part], out[part], out[part].numel(), BLOCK=8)
    assert torch.equal(out, source * 2)
    with TritonHarness(partly=["out"]):
        copy_kernel[(1,)](source, out, 3, BLOCK=8)


def test_permuted_programs() -> None:
    def run() -> list[torch.Tensor]:
        out = torch.empty(32)
        copy_kernel[(4,)](torch.arange(32.0), out, 32, BLOCK=8)
        return [out]

    assert torch.equal(same_in_any_order(run)[0], torch.arange(32.0) * 2)
    seen: list[int] = []
    with TritonHarness(order=1):
        place = builder.create_get_program_id

        def spy(axis: int) -> Any:
            seen.append(builder.grid_idx[0])
            return place(axis)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builder, "create_get_program_id", spy)
            copy_kernel[(4,)](torch.zeros(32), torch.zeros(32), 32, BLOCK=8)
    assert sorted(seen) == [0, 1, 2, 3]
    assert seen != [0, 1, 2, 3]


def test_a_result_that_depends_on_the_order_is_found_out() -> None:
    calls = iter(range(9))

    def run() -> list[torch.Tensor]:
        return [torch.tensor([float(next(calls))])]

    with pytest.raises(Fault, match="result 0 depends on the order"):
        same_in_any_order(run)


def test_one_program_of_a_tensor_that_would_not_fit() -> None:
    rows, width = 46000, 49152
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x = torch.empty(rows, width, dtype=torch.bfloat16)  # 4.5 GB of addresses, no memory
    x[-1, :100] = 1
    out = torch.empty(rows)
    with TritonHarness(only=(rows - 1,)) as harness:
        row_sum_kernel[(rows,)](x, out, x.stride(0), 100, BLOCK=128, WIDE=True)
    assert out[-1] == 100
    assert harness.programs == 1
    assert harness.read["x"] == 200
    with pytest.raises(Fault, match="reads outside"), TritonHarness(only=(rows - 1,)):
        row_sum_kernel[(rows,)](x, out, x.stride(0), 100, BLOCK=128, WIDE=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KB
    with pytest.raises(Exception, match="inside the grid"), TritonHarness(only=(rows,)):
        row_sum_kernel[(rows,)](x, out, x.stride(0), 100, BLOCK=128, WIDE=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dots_multiply_numbers(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=draw).to(dtype) for _ in range(2))
    out = torch.empty(16, 16)
    with TritonHarness():
        dot_kernel[(1,)](a, b, out, SIDE=16)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_bf16_rounds_as_a_gpu_does() -> None:
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(0))
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 3.4e38])
    numbers = torch.cat([bits.int().view(torch.float32), special])
    numbers = torch.cat([numbers, torch.zeros(8192 - numbers.numel())])

    with TritonHarness():
        out = torch.empty(8192, dtype=torch.bfloat16)
        copy_kernel[(1,)](numbers / 2, out, 8192, BLOCK=8192)
    torch.testing.assert_close(out, numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_arithmetic_on_bf16_is_refused() -> None:
    x = torch.ones(1, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="convert to float32 first"), TritonHarness():
        bf16_arithmetic_kernel[(1,)](x, x.clone())


def test_everything_is_restored_and_kernels_still_compile() -> None:
    before = (dict(vars(builder)), GridExecutor.__call__, JITFunction.run, JITFunction.__call__)
    core = dict(vars(tl.core))
    with pytest.raises(Fault), TritonHarness():
        out_of_bounds()
    with interpreted():
        row_sum_kernel[(1,)](torch.ones(8), torch.ones(1), 8, 8, BLOCK=8, WIDE=True)
    after = (dict(vars(builder)), GridExecutor.__call__, JITFunction.run, JITFunction.__call__)
    for name in ("grid_dim", "grid_idx"):
        before[0].pop(name, None)
        after[0].pop(name, None)
    assert after == before
    assert dict(vars(tl.core)) == core
    types = {"x": "*bf16", "out": "*fp32", "stride": "i64", "width": "i32"}
    constants = {"BLOCK": 128, "WIDE": True}
    signature = {name: types.get(name, "constexpr") for name in row_sum_kernel.arg_names}
    source = ASTSource(row_sum_kernel, signature, constexprs=constants)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
