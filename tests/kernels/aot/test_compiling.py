"""From a configuration to machine code, however the kernel was decorated."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from tinkergate_kernels.aot import compiling, cost_model, machine_code, tile_code
from tinkergate_kernels.gpu.shipped import Shipped


@triton.jit
def doubled(x):
    return x + x


@triton.jit
def double(x, out, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, doubled(tl.load(x + at)))


DOUBLE = Shipped(
    name="double",
    kernel=double,
    signature={"x": "*fp32", "out": "*fp32"},
    constants={"BLOCK": 512},
    divisible_by_16=("x", "out"),
)


def for_the_interpreter(kernel: Any, **scope: Any) -> InterpretedFunction:
    """What `@triton.jit` makes of a function where the interpreter is on."""
    function = kernel.fn
    return InterpretedFunction(
        types.FunctionType(function.__code__, {**function.__globals__, **scope}, function.__name__)
    )


def test_a_kernel_decorated_for_the_interpreter_compiles_to_the_same() -> None:
    plain = compiling.compile_for(DOUBLE, "sm_80")
    kernel = for_the_interpreter(double, doubled=for_the_interpreter(doubled))
    assert compiling.compile_for(replace(DOUBLE, kernel=kernel), "sm_80") == plain


def test_signature_and_constants_must_be_the_arguments() -> None:
    wrong = replace(DOUBLE, signature={"x": "*fp32", "y": "*fp32"})
    with pytest.raises(ValueError, match=r"double: signature and constants name \['BLOCK', 'x'"):
        compiling.compile_for(wrong, "sm_80")


def test_what_is_shipped_has_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import tinkergate_kernels.gpu.losses as module

    names = [each.name for each in compiling.shipped()]
    assert names
    assert names == sorted(set(names))
    monkeypatch.setattr(module, "SHIPPED", (*module.SHIPPED, module.SHIPPED[0]))
    with pytest.raises(ValueError, match="two shipped configurations have the name"):
        compiling.shipped()


def test_the_versions_of_the_tools_are_told() -> None:
    assert compiling.versions().startswith(f"Triton {triton.__version__}, its ptxas ")


def test_predictions_follow_the_figures_of_the_card() -> None:
    compiled = compiling.compile_for(DOUBLE, "sm_90")
    tiles = tile_code.read(compiled.tile_code)
    code = machine_code.read(compiled, tiles)
    share = cost_model.predict("sm_90", code, tiles, compiled.threads)
    assert share is not None
    assert share.limit == "memory"
    seconds = 2 * 512 * 4 / 3.35e12
    slots = code.instructions * 128 / 128  # threads of a program, lanes of a multiprocessor
    assert share.issue == pytest.approx(slots / (132 * 1.83e9) / seconds)
    assert share.special == 0
    assert share.share == pytest.approx(1 / max(1, share.issue))
    busier = replace(code, turn=replace(code.turn, instructions=100 * code.turn.instructions))
    slower = cost_model.predict("sm_90", busier, tiles, compiled.threads)
    assert slower is not None
    assert slower.share == pytest.approx(1 / (100 * share.issue))
