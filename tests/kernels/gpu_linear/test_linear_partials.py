"""The forward of the fused linear kernel, interpreted, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gpu_linear_cases import Case, largest, make_case, same_bits
from triton_harness import TritonHarness, same_in_any_order

from tinkergate_kernels import partials as whole
from tinkergate_kernels.arguments import Lora
from tinkergate_kernels.gpu import linear, linear_shapes
from tinkergate_kernels.partials import Merged, Partials

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def run(case: Case, *, split: int = 256) -> Partials:
    return linear.partials(
        case.hidden, case.weight, case.targets, softcap=case.softcap, split=split, **case.more()
    )


def assert_agrees(found: Merged, case: Case) -> None:
    wanted = case.expected()
    half = case.hidden.dtype != torch.float32
    assert largest(found.logprob, wanted.logprob) <= (2e-5 if half else 1e-5)
    assert largest(found.logsumexp, wanted.logsumexp) <= (2e-5 if half else 1e-5)
    assert largest(found.entropy, wanted.entropy) <= (5e-5 if half else 1e-5)
    assert float(found.logprob.max()) <= 0


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 3, "ignored": True},
    {"rank": 5, "bias": True},
    {"softcap": 20.0, "k": 6, "rank": 2, "bias": True, "ignored": True},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 11), (33, 72, 300)])
def test_values(shape: tuple[int, int, int], options: dict[str, Any], dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype=dtype, **options)
    assert_agrees(linear.merge(run(case)), case)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_more_rows_than_a_tile(dtype: torch.dtype) -> None:
    case = make_case(131, 96, 1003, dtype=dtype, k=2, rank=3, bias=True, ignored=True)
    assert_agrees(linear.merge(run(case)), case)


def test_a_full_vocabulary() -> None:
    case = make_case(4, 64, 49152, dtype=torch.bfloat16, k=2)
    found = linear.partials(case.hidden, case.weight, case.targets, **case.more())
    assert found.maximum.shape == (24, 4)
    assert_agrees(linear.merge(found), case)


def test_one_token_and_one_row() -> None:
    found = linear.merge(run(make_case(1, 1, 1)))
    assert found.logprob.tolist() == [[0.0]]
    assert found.entropy.tolist() == [0.0]


@pytest.mark.parametrize(("n", "k"), [(0, 2), (3, 0)])
def test_nothing_to_do(n: int, k: int) -> None:
    case = make_case(n, 6, 9, k=k)
    with TritonHarness() as harness:
        found = run(case)
    assert harness.programs == 0
    assert found.target.shape == (1, n, k)
    assert not linear.merge(found).logsumexp.any()


def test_ignored_rows_are_not_read() -> None:
    case = make_case(9, 16, 70, k=2)
    case.targets[2:] = torch.tensor([-100, 70])
    with TritonHarness() as harness:
        found = run(case)
    # A tile of 64 rows reads its two rows and the last one again.
    assert harness.written["maximum"] == 2 * 4
    alone = run(case.rows(slice(0, 2)))
    for x, y in zip(found, alone, strict=True):
        assert same_bits(x[:, :2], y)
    merged = linear.merge(found)
    for field in merged:
        assert not field[2:].any()
    case.targets[:] = -1
    with TritonHarness() as harness:
        assert not run(case).total.any()
    assert harness.programs == 0


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_row_is_the_same_bits_alone_in_7_and_in_500(dtype: torch.dtype) -> None:
    case = make_case(500, 40, 300, dtype=dtype, k=2, rank=2, bias=True)
    every = linear.merge(run(case))
    for rows in (slice(3, 4), slice(3, 10), slice(493, 500)):
        for x, y in zip(linear.merge(run(case.rows(rows))), every, strict=True):
            assert same_bits(x, y[rows])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_parts_of_the_vocabulary_merge_to_the_same_bits(dtype: torch.dtype) -> None:
    case = make_case(9, 48, 1024, dtype=dtype, k=2, rank=3, bias=True, softcap=30.0, ignored=True)
    wanted = run(case, split=128)
    for parts in (2, 4):
        step = 1024 // parts
        found = [
            linear.partials(
                case.hidden,
                targets=case.targets,
                inv_temperature=case.inv_temperature,
                softcap=case.softcap,
                split=128,
                **case.tokens(slice(begin, begin + step)),
            )
            for begin in range(0, 1024, step)
        ]
        joined = whole.concatenated(found)
        for x, y in zip(joined, wanted, strict=True):
            assert same_bits(x, y)
        for x, y in zip(linear.merge(joined), linear.merge(wanted), strict=True):
            assert same_bits(x, y)


def test_the_merge_is_that_of_the_definition() -> None:
    case = make_case(40, 16, 900, k=3, ignored=True)
    found = run(case, split=100)
    for x, y in zip(linear.merge(found), whole.merge(found), strict=True):
        assert largest(x, y.double()) <= 4e-6


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_row_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    case = make_case(130, 40, 300, dtype=dtype, k=2, rank=2, bias=True)
    batch = run(case)
    for rows in (slice(0, 1), slice(0, 7), slice(129, 130), slice(60, 67)):
        for x, y in zip(run(case.rows(rows)), batch, strict=True):
            assert same_bits(x, y[:, rows])


def test_order_of_programs_writes_and_reads() -> None:
    case = make_case(70, 64, 300, dtype=torch.bfloat16, k=3, rank=2, bias=True, ignored=True)

    def both() -> list[torch.Tensor]:
        found = run(case, split=128)
        return [*found, *linear.merge(found)]

    same_in_any_order(both)
    plain = make_case(128, 64, 256, dtype=torch.bfloat16)
    with TritonHarness() as harness:
        run(plain, split=128)
    # Two splits of one tile each: hidden once a split, the weight once for all rows of a tile.
    assert harness.programs == 2
    assert harness.read["hidden"] == 2 * plain.hidden.nbytes
    assert harness.read["weight"] == plain.weight.nbytes


@pytest.mark.parametrize("level", [-1e30, -1e4, 1e4, 1e30])
def test_equal_logits_of_any_size_are_a_uniform_prediction(level: float) -> None:
    case = make_case(5, 16, 300)
    case.hidden.zero_()
    case.bias = torch.full((300,), level)
    uniform = -torch.tensor(300.0).log()
    found = linear.merge(run(case, split=64))
    torch.testing.assert_close(found.logprob, uniform.expand(5, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.entropy, -uniform.expand(5), rtol=0, atol=2e-6)


def test_forbidden_tokens_by_bias() -> None:
    case = make_case(5, 16, 300, k=2)
    case.bias = torch.zeros(300)
    case.bias[100:] = -torch.inf
    case.targets %= 100
    narrow = make_case(5, 16, 300, k=2)
    narrow.weight, narrow.targets = narrow.weight[:100], case.targets
    assert_agrees(linear.merge(run(case, split=64)), narrow)
    case.targets[:, 1] = 200
    found = linear.merge(run(case, split=64)).logprob
    assert found[:, 1].tolist() == [-torch.inf] * 5
    assert found[:, 0].isfinite().all()


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_what_is_not_a_number_is_told() -> None:
    case = make_case(3, 16, 300)
    case.hidden[1, 2] = torch.nan
    found = linear.merge(run(case))
    assert found.logprob.isnan().tolist() == [[False], [True], [False]]


@pytest.mark.parametrize("far", ["hidden", "weight"])
def test_rows_beyond_two_to_the_31(far: str) -> None:
    case = make_case(140, 16, 140, dtype=torch.bfloat16)
    near = getattr(case, far)
    # Address space only: no page but those of the rows is touched.
    spread = torch.empty(140 << 24, dtype=torch.bfloat16).as_strided((140, 16), (1 << 24, 1))
    spread.copy_(near)
    wanted = run(case)
    setattr(case, far, spread)
    with TritonHarness():
        found = run(case)
    for x, y in zip(found, wanted, strict=True):
        assert same_bits(x, y)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_shapes_of_other_targets(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_shapes, "target_of", lambda device: target)
    case = make_case(140, 64, 400, dtype=torch.bfloat16, k=2, rank=3, bias=True, ignored=True)
    # One row is ignored: the others are copied, so that what descriptors need is there.
    shape = linear_shapes.shape_for(case.hidden, case.weight)
    assert shape.descriptors == (target == "sm_90")
    with TritonHarness():
        found = run(case)
    assert_agrees(linear.merge(found), case)
    odd = make_case(20, 33, 90, dtype=torch.bfloat16)
    assert not linear_shapes.shape_for(odd.hidden, odd.weight).descriptors
    assert_agrees(linear.merge(run(odd)), odd)


def test_a_float32_lora_on_a_half_model_keeps_its_precision() -> None:
    case = make_case(20, 64, 300, dtype=torch.bfloat16, rank=7, spread=1.0)
    assert case.lora is not None
    case.lora = Lora(case.lora.a, case.lora.b * 20, 1.0)
    assert_agrees(linear.merge(run(case)), case)


def test_different_dtypes_take_the_one_that_holds_both() -> None:
    case = make_case(20, 64, 300)
    case.hidden = case.hidden.to(torch.bfloat16)
    assert_agrees(linear.merge(run(case)), case)
