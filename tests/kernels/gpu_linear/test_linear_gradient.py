"""The recompute pass, interpreted, against autograd through whole logits in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from gpu_linear_cases import Case, make_case, relative, same_bits
from triton_harness import TritonHarness, same_in_any_order

from tinkergate_kernels.gpu import linear, linear_shapes
from tinkergate_kernels.gpu.linear import Gradients, Needs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 128
RULES = {"inplace": ("out",), "reused": ("out", "chunk"), "partly": ("chunk",)}


def all_needs(case: Case) -> Needs:
    lora = case.lora is not None
    return Needs(True, True, case.bias is not None, lora, lora)


def run(case: Case, needs: Needs | None = None, **cut: int) -> Gradients:
    return linear.gradient(
        case.hidden,
        case.weight,
        case.targets,
        case.upstream,
        logsumexp(case),
        needs=needs or all_needs(case),
        softcap=case.softcap,
        **case.more(),
        **{"chunk": CHUNK, **cut},
    )


def logsumexp(case: Case) -> Tensor:
    return case.expected().logsumexp.float()


def assert_agrees(found: Gradients, case: Case) -> None:
    bound = 5e-6 if case.hidden.dtype == torch.float32 else 5e-3
    for x, y in zip(found, case.expected().gradients, strict=True):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            assert relative(x, y) <= bound


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 3, "ignored": True},
    {"rank": 5, "bias": True},
    {"softcap": 20.0, "k": 6, "rank": 2, "bias": True, "ignored": True},
]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_gradient(options: dict[str, Any], dtype: torch.dtype) -> None:
    case = make_case(33, 72, 300, dtype=dtype, **options)
    assert_agrees(run(case), case)


def test_float16() -> None:
    case = make_case(33, 24, 200, dtype=torch.float16, **OPTIONS[-1])
    assert_agrees(run(case), case)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_small_shapes(options: dict[str, Any]) -> None:
    case = make_case(3, 5, 11, **options)
    assert_agrees(run(case), case)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_more_rows_than_a_block(dtype: torch.dtype) -> None:
    case = make_case(131, 140, 200, dtype=dtype, k=2, rank=3, bias=True, ignored=True)
    whole, blocks = run(case), run(case, chunk_bytes=1)
    assert_agrees(whole, case)
    assert_agrees(blocks, case)
    assert whole.hidden is not None
    assert blocks.hidden is not None
    assert same_bits(whole.hidden, blocks.hidden)


def test_a_full_vocabulary() -> None:
    case = make_case(4, 16, 49152, dtype=torch.bfloat16, softcap=30.0)
    found = linear.gradient(
        case.hidden,
        case.weight,
        case.targets,
        case.upstream,
        logsumexp(case),
        needs=Needs(hidden=True),
        softcap=30.0,
        **case.more(),
    )
    wanted = case.expected().gradients[0]
    assert found.hidden is not None
    assert wanted is not None
    assert relative(found.hidden, wanted) <= 5e-3


@pytest.mark.parametrize("name", Needs._fields)
def test_only_what_is_wanted(name: str) -> None:
    case = make_case(20, 24, 300, k=2, rank=3, bias=True)
    everything = run(case)
    found = run(case, Needs(**{name: True}))
    for field, x, y in zip(Needs._fields, found, everything, strict=True):
        if field == name:
            assert x is not None
            assert y is not None
            assert same_bits(x, y)
        else:
            assert x is None


def test_parts_of_the_vocabulary_add_up() -> None:
    case = make_case(20, 24, 300, k=2, rank=3, bias=True, softcap=25.0, ignored=True)
    wanted = case.expected().gradients
    parts = [
        linear.gradient(
            case.hidden,
            targets=case.targets,
            upstream=case.upstream,
            logsumexp=logsumexp(case),
            needs=all_needs(case),
            inv_temperature=case.inv_temperature,
            softcap=case.softcap,
            **case.tokens(tokens),
        )
        for tokens in (slice(0, 100), slice(100, 300))
    ]
    for name, expected in zip(Gradients._fields, wanted, strict=True):
        first, second = (getattr(part, name) for part in parts)
        found = first + second if name in ("hidden", "a") else torch.cat([first, second])
        assert expected is not None
        assert relative(found, expected) <= 5e-6


def test_the_same_target_many_times_adds_up() -> None:
    case = make_case(50, 8, 30, k=5, rank=2)
    case.targets[:] = 7
    assert_agrees(run(case), case)


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_do(n: int) -> None:
    case = make_case(n, 6, 9, k=2, rank=2, bias=True)
    case.targets[:] = -100
    with TritonHarness() as harness:
        found = run(case)
    assert harness.programs == 0
    leaves = (case.hidden, case.weight, case.bias, case.lora and case.lora.a)
    for x, leaf in zip(found, leaves, strict=False):
        assert x is not None
        assert leaf is not None
        assert x.shape == leaf.shape
        assert not x.any()


def test_small_upstream_gradients_in_float16() -> None:
    case = make_case(20, 24, 300, dtype=torch.float16, k=2, rank=3)
    case.upstream *= 1e-7
    for x, y in zip(run(case), case.expected().gradients, strict=True):
        if x is not None and y is not None:
            assert float((x - y).abs().max() / y.abs().max()) <= 5e-3


def test_order_of_programs_and_writes() -> None:
    case = make_case(70, 40, 300, dtype=torch.bfloat16, k=3, rank=2, bias=True, ignored=True)

    def fields() -> list[Tensor]:
        return [field for field in run(case) if field is not None]

    assert len(same_in_any_order(fields, seeds=(1,), **RULES)) == 5


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_shapes_of_other_targets(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_shapes, "target_of", lambda device: target)
    case = make_case(140, 64, 200, dtype=torch.bfloat16, k=2, rank=3, bias=True, ignored=True)
    assert_agrees(run(case), case)


def test_what_there_is_no_gradient_of_is_refused() -> None:
    case = make_case(3, 6, 9)
    with pytest.raises(ValueError, match="there must be a bias"):
        run(case, Needs(bias=True))
    with pytest.raises(ValueError, match="there must be a lora"):
        run(case, Needs(b=True))
