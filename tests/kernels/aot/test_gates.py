"""The rules of the ahead-of-time gate, on kernels that keep them and kernels that must not pass."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl

from tinkergate_kernels.aot import compiling, gates
from tinkergate_kernels.aot.gates import Failure, Reading
from tinkergate_kernels.gpu.shipped import Bounds, Shipped


@triton.jit
def _read(pointer, mask, FULL: tl.constexpr):  # noqa: N803
    if FULL:
        return tl.load(pointer)
    return tl.load(pointer, mask=mask, other=float("-inf"))


@triton.jit
def scan(x, out, columns, BLOCK: tl.constexpr):  # noqa: N803
    """Sums of powers of two, over rows of any length: full tiles, and a tail."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    full = columns // BLOCK * BLOCK
    for start in range(0, full, BLOCK):
        place = start + at
        total += tl.exp2(_read(x + row * columns + place, place < columns, True).to(tl.float32))
    place = full + at
    total += tl.exp2(_read(x + row * columns + place, place < columns, False).to(tl.float32))
    tl.store(out + row, tl.sum(total))


@triton.jit
def scale(x, out, count, BLOCK: tl.constexpr):  # noqa: N803
    """No loop, and a mask on every tile."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, 2 * tl.load(x + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def count_up(x, out, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(x + at)))


@triton.jit
def whole_row(x, out, columns, BLOCK: tl.constexpr):  # noqa: N803
    """A softmax of a row at once, as is the habit: the row is kept in registers."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * columns + at, mask=inside, other=float("-inf")).to(tl.float32)
    powers = tl.exp2(values - tl.max(values))
    tl.store(out + row * columns + at, powers / tl.sum(powers), mask=inside)


@triton.jit
def product(a, b, out, width, BLOCK: tl.constexpr, DEPTH: tl.constexpr):  # noqa: N803
    rows = tl.arange(0, BLOCK)
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, width, DEPTH):
        left = tl.load(a + rows[:, None] * width + (start + depth)[None, :])
        right = tl.load(b + rows[:, None] * width + (start + depth)[None, :])
        total = tl.dot(left, right.T, total, input_precision="ieee")
    tl.store(out + rows[:, None] * BLOCK + rows[None, :], total)


TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
SCAN = Shipped(
    name="scan",
    kernel=scan,
    signature={"x": "*bf16", "out": "*fp32", "columns": "i32"},
    constants={"BLOCK": 4096},
    divisible_by_16=("x", "out", "columns"),
    elements_per_loop=4096,
    bounds=Bounds(instructions_per_element=6, special_functions_per_element=1.1),
)
SCALE = Shipped(
    name="scale",
    kernel=scale,
    signature={"x": "*fp32", "out": "*fp32", "count": "i64"},
    constants={"BLOCK": 1024},
    divisible_by_16=("x", "out", "count"),
)
PRODUCT = Shipped(
    name="product",
    kernel=product,
    signature={"a": "*bf16", "b": "*bf16", "out": "*fp32", "width": "i32"},
    constants={"BLOCK": 64, "DEPTH": 32},
    divisible_by_16=("a", "b", "out", "width"),
    bounds=Bounds(dot=True),
)


@functools.cache
def compiled(name: str, target: str) -> Reading:
    """Each of the configurations here is compiled once."""
    return gates.read(CONFIGURATIONS[name], target)


def types(configuration: Shipped, **changed: str) -> Mapping[str, str]:
    return {**configuration.signature, **changed}


CONFIGURATIONS: dict[str, Shipped] = {
    "scan": SCAN,
    "scale": SCALE,
    "product": PRODUCT,
    "scan, nothing promised": replace(SCAN, divisible_by_16=()),
    "scan, length not promised": replace(SCAN, divisible_by_16=("x", "out")),
    "scale, length not promised": replace(SCALE, divisible_by_16=("x", "out")),
    "atomic": Shipped(
        name="atomic",
        kernel=count_up,
        signature={"x": "*fp32", "out": "*fp32"},
        constants={"BLOCK": 1024},
        divisible_by_16=("x", "out"),
    ),
    "whole row": Shipped(
        name="whole row",
        kernel=whole_row,
        signature={"x": "*bf16", "out": "*fp32", "columns": "i32"},
        constants={"BLOCK": 65536},
        divisible_by_16=("x", "out", "columns"),
    ),
    "product of float32": replace(PRODUCT, signature=types(PRODUCT, a="*fp32", b="*fp32")),
}


def broken(name: str, target: str, **bounds: Any) -> list[Failure]:
    reading = compiled(name, target)
    wanted = replace(reading.configuration.bounds, **bounds)
    return gates.failures(
        replace(reading, configuration=replace(reading.configuration, bounds=wanted))
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["scan", "scale", "product"])
def test_what_keeps_the_rules_passes(name: str, target: str) -> None:
    assert broken(name, target) == []


def test_spills_are_seen() -> None:
    (failure,) = broken("whole row", "sm_80")
    assert failure.rule == "registers must not spill and there must be no stack"
    assert int(failure.figure.split()[0]) > 100


def test_spills_are_seen_in_what_the_assembler_for_amd_tells() -> None:
    compiled_scale = compiling.compile_for(SCALE, "gfx942")
    for field, value in (("vgpr_spill_count", 7), ("private_segment_fixed_size", 64)):
        told, found = re.subn(rf"\.{field}:\s+0\b", f".{field}: {value}", compiled_scale.assembly)
        assert found == 1
        (failure,) = gates.failures(gates.reading(SCALE, replace(compiled_scale, assembly=told)))
        assert str(value) in failure.figure
        assert failure.rule == "registers must not spill and there must be no stack"


@pytest.mark.parametrize("target", TARGETS)
def test_narrow_loads_are_seen_and_named(target: str) -> None:
    failures = broken("scan, nothing promised", target)
    assert [failure.rule for failure in failures if failure.rule == "must be 128 bits"]
    line = _read.fn.__code__.co_firstlineno
    # The load of a full tile, by its line in _read and the line of its call in scan.
    assert f"load of 4096 x 16 bits at source {line + 3}:" in failures[0].figure
    assert "called at" in failures[0].figure
    assert "16 bits wide" in failures[0].figure
    assert broken("scan, nothing promised", target, wide_loads=False) == [
        failure for failure in failures if "bits" not in failure.figure
    ]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_masked_tail_may_be_narrow_and_a_masked_tile_may_not(target: str) -> None:
    tail = compiled("scan, length not promised", target)
    assert tail.full == 1  # the tile; not the tail, and not the one number that is stored
    figures = [failure.figure for failure in broken("scale, length not promised", target)]
    assert len([figure for figure in figures if figure.startswith("load of 1024")]) == 1
    assert len([figure for figure in figures if figure.startswith("store of 1024")]) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_global_atomics_are_seen(target: str) -> None:
    (failure,) = broken("atomic", target)
    assert "atomic" in failure.figure
    assert failure.rule == "there must be none"


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_dot_without_tensor_cores_is_seen(target: str) -> None:
    (failure,) = broken("product of float32", target)
    assert failure.rule == "a dot must use tensor cores"
    assert broken("product of float32", target, dot=False) == []


def test_counts_per_element_are_held_to_their_bounds() -> None:
    found = compiled("scan", "sm_90").per_element()
    assert found is not None
    assert found.special == pytest.approx(1.0)
    # A load's share, two unpackings of bf16, the power and the sum.
    assert 3 < found.instructions < 6
    (failure,) = broken("scan", "sm_90", instructions_per_element=2)
    assert failure.figure == f"{found.instructions:.2f} instructions per element"
    assert failure.rule == "the bound is 2"
    (failure,) = broken("scan", "sm_90", special_functions_per_element=0.5)
    assert failure.figure == "1.00 special functions per element"


def test_shared_memory_is_held_to_what_the_card_has() -> None:
    reading = compiled("scan", "gfx942")
    more = replace(reading, code=replace(reading.code, shared_bytes=65537))
    assert "the card has 65536 for a program" in [failure.rule for failure in gates.failures(more)]


def test_an_assembler_that_narrows_is_seen() -> None:
    reading = compiled("scale", "sm_80")
    narrow = replace(reading.code.accesses[0], bits=32)
    accesses = (*reading.code.accesses, narrow)
    found = gates.failures(replace(reading, code=replace(reading.code, accesses=accesses)))
    assert [str(failure) for failure in found] == [
        "scale on sm_80: a load of 32 bits; the narrowest before the assembler has 128"
    ]
