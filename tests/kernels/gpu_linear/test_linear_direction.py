"""Logprobs with the mean of the unembedding, interpreted, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from gpu_linear_cases import Case, largest, make_case, relative, same_bits
from triton_harness import TritonHarness, same_in_any_order

from tinkergate_kernels.gpu import linear, linear_means, linear_shapes
from tinkergate_kernels.gpu.linear import Direction

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 128

RULES = {
    "inplace": ("out", "reference_so_far", "sums", "weights", "exceeded"),
    "reused": (
        *("out", "reference_so_far", "sums", "weights", "exceeded"),
        *("chunk", "maximum", "total", "weighted", "decay"),
    ),
    "partly": ("maximum", "total", "weighted", "target"),
}
"""What is the running state, and what each chunk writes anew. A last chunk has fewer tiles,
and an ignored target has no logit."""


def run(case: Case, **cut: int) -> Direction:
    assert case.softcap is None
    return linear.direction(
        case.hidden, case.weight, case.targets, **case.more(), **{"chunk": CHUNK, **cut}
    )


def gradient(found: Direction, case: Case) -> Tensor:
    """d hidden by the formula in `direction`'s docstring, float64."""
    inside = case.inside()
    upstream = torch.where(inside, case.upstream, 0.0).double()
    local = case.targets.clamp(0, len(case.weight) - 1)

    def pull(table: Tensor, mean: Tensor) -> Tensor:
        picked = (upstream[:, :, None] * table[local].double()).sum(dim=1)
        return picked - upstream.sum(dim=1, keepdim=True) * mean.double()

    grad = pull(case.weight, found.mean_w)
    if case.lora is not None:
        assert found.mean_b is not None
        a, b, scale = case.lora
        grad += scale * pull(b, found.mean_b) @ a.double()
    return grad * case.inv_temperature.double()[:, None]


def assert_agrees(found: Direction, case: Case) -> None:
    wanted = case.expected()
    half = case.hidden.dtype != torch.float32
    assert largest(found.logprob, wanted.logprob) <= (2e-5 if half else 1e-5)
    assert largest(found.logsumexp, wanted.logsumexp) <= (2e-5 if half else 1e-5)
    assert largest(found.entropy, wanted.entropy) <= (5e-5 if half else 1e-5)
    bound = 5e-3 if half else 5e-6
    assert relative(found.mean_w, wanted.mean_w) <= bound
    if wanted.mean_b is not None:
        assert found.mean_b is not None
        assert relative(found.mean_b, wanted.mean_b) <= bound
    d_hidden = wanted.gradients[0]
    assert d_hidden is not None
    assert relative(gradient(found, case).float(), d_hidden) <= bound


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 3, "ignored": True},
    {"rank": 5, "bias": True},
    {"k": 6, "rank": 2, "bias": True, "ignored": True},
]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradient(options: dict[str, Any], dtype: torch.dtype) -> None:
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
def test_more_rows_than_a_tile(dtype: torch.dtype) -> None:
    case = make_case(131, 140, 300, dtype=dtype, k=2, rank=3, bias=True, ignored=True)
    assert_agrees(run(case), case)


def test_a_full_vocabulary() -> None:
    case = make_case(4, 16, 49152, dtype=torch.bfloat16)
    found = linear.direction(case.hidden, case.weight, case.targets, **case.more())
    assert_agrees(found, case)


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_do(n: int) -> None:
    case = make_case(n, 6, 9, k=2, rank=2)
    case.targets[:] = -100
    with TritonHarness() as harness:
        found = run(case)
    assert harness.programs == 0
    assert found.mean_w.shape == (n, 6)
    assert found.mean_b is not None
    assert found.mean_b.shape == (n, 2)
    for field in found:
        assert field is not None
        assert not field.any()


def _passes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pass that is made from now on has a lagging reference."""
    made: list[bool] = []
    once = linear_means._pass

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        made.append(arguments[-1])
        return once(*arguments)

    monkeypatch.setattr(linear_means, "_pass", counted)
    return made


@pytest.mark.parametrize(("dtype", "rise"), list(zip(DTYPES, (100.0, 100.0, 15.0), strict=True)))
def test_a_logit_far_above_the_reference_takes_one_more_pass(
    dtype: torch.dtype, rise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _passes(monkeypatch)
    case = make_case(20, 32, 600, dtype=dtype, k=2, spread=1.0)
    case.inv_temperature[:] = 1.0
    # The reference is the target's logit until after the first chunk; tokens of that and of the
    # last rise above it, in octaves.
    case.bias = torch.zeros(600)
    case.targets[:] = torch.tensor([3, 5])
    octaves = torch.log(torch.tensor(2.0))
    case.bias[100] = case.bias[500] = (rise - 9.0) * octaves
    assert_agrees(run(case), case)
    assert made == [True]
    case.bias[100] = (rise + 9.0) * octaves
    case.bias[500] = (rise + 8.0) * octaves
    found = run(case)
    assert made == [True, True, False]
    wanted = case.expected()
    assert float((found.logsumexp - wanted.logsumexp).abs().max()) <= 2e-5
    assert relative(found.mean_w, wanted.mean_w) <= (5e-6 if dtype == torch.float32 else 5e-3)
    assert float((found.logprob - wanted.logprob).abs().max()) <= 4e-5


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_forbidden_targets(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _passes(monkeypatch)
    case = make_case(5, 16, 300, dtype=dtype)
    case.bias = torch.zeros(300)
    case.bias[200:] = -torch.inf
    case.targets[:] = 250
    found = run(case)
    assert made == [True, False]
    assert found.logprob.tolist() == [[-torch.inf]] * 5
    narrow = make_case(5, 16, 300, dtype=dtype)
    narrow.weight, narrow.targets = narrow.weight[:200], narrow.targets % 200
    bound = 5e-6 if dtype == torch.float32 else 5e-3
    assert relative(found.mean_w, narrow.expected().mean_w) <= bound


@pytest.mark.parametrize("level", [-1e30, -1e4, 1e4, 1e30])
def test_equal_logits_of_any_size_are_a_uniform_prediction(level: float) -> None:
    case = make_case(5, 16, 300)
    case.hidden.zero_()
    case.bias = torch.full((300,), level)
    uniform = -torch.tensor(300.0).log()
    found = run(case)
    torch.testing.assert_close(found.logprob, uniform.expand(5, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.mean_w, case.weight.mean(dim=0).expand(5, 16))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_row_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    case = make_case(130, 40, 200, dtype=dtype, k=2, rank=2, bias=True)
    batch = run(case)
    # Blocks of one tile of rows rather than one block.
    blocks = run(case, chunk_bytes=1)
    for rows in (slice(0, 1), slice(60, 67)):
        alone = run(case.rows(rows))
        for x, y, z in zip(alone, batch, blocks, strict=True):
            assert x is not None
            assert y is not None
            assert z is not None
            assert same_bits(x, y[rows])
            assert same_bits(z, y)


def test_order_of_programs_and_writes() -> None:
    case = make_case(70, 40, 300, dtype=torch.bfloat16, k=3, rank=2, bias=True, ignored=True)

    def fields() -> list[Tensor]:
        return [field for field in run(case) if field is not None]

    found = same_in_any_order(fields, seeds=(1,), **RULES)
    assert len(found) == 5


def test_reads() -> None:
    case = make_case(128, 128, 256, dtype=torch.bfloat16)
    with TritonHarness(**RULES) as harness:
        run(case)
    # Once for the target's logit, and for each of the two tiles of tokens.
    assert harness.read["hidden"] == 3 * case.hidden.nbytes
    # All once for the logits, the target's rows besides; then once more, for the means.
    assert harness.read["weight"] == case.weight.nbytes + 128 * 128 * 2
    assert harness.read["right"] == case.weight.nbytes
    assert harness.written["chunk"] == harness.read["left"] == 128 * 256 * 2


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_shapes_of_other_targets(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_shapes, "target_of", lambda device: target)
    case = make_case(140, 64, 200, dtype=torch.bfloat16, k=2, rank=3, bias=True, ignored=True)
    shape = linear_shapes.shape_for(case.hidden, case.weight)
    assert shape.descriptors == (target == "sm_90")
    assert_agrees(run(case), case)
