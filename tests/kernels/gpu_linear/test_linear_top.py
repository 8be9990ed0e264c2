"""Top-k of the fused linear kernel, in the pass and beside it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from gpu_linear_cases import Case, largest, make_case, same_bits
from triton_harness import TritonHarness

from tinkergate_kernels.gpu import linear
from tinkergate_kernels.gpu.linear_partials import Top
from tinkergate_kernels.gpu.linear_top import top_of_chunks


def run(case: Case, k: int, split: int = 128) -> Top:
    return linear.partials_with_top(
        case.hidden,
        case.weight,
        case.targets,
        k,
        softcap=case.softcap,
        split=split,
        **case.more(),
    )[1]


@pytest.mark.parametrize("k", [1, 5, 20, 64, 65, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_largest(k: int, dtype: torch.dtype) -> None:
    case = make_case(9, 24, 400, dtype=dtype, rank=2, bias=True, softcap=30.0)
    found, wanted = run(case, k), case.expected().z.topk(k)
    assert largest(found.z, wanted.values) <= 2e-5
    # Where logits are closer than float32 tells apart, the ids may be in another order.
    there = case.expected().z.gather(1, found.ids)
    assert largest(found.z, there) <= 2e-5
    assert all(row.unique().numel() == k for row in found.ids)


@pytest.mark.parametrize("k", [8, 70])
def test_of_equal_ones_the_lower_ids_first(k: int) -> None:
    case = make_case(3, 8, 300)
    case.hidden.zero_()
    case.bias = torch.zeros(300)
    case.bias[200:203] = -0.0
    case.bias[250] = 1.0
    found = run(case, k)
    assert found.ids.tolist() == [[250, *range(k - 1)]] * 3


@pytest.mark.parametrize("k", [12, 70])
def test_more_than_there_are(k: int) -> None:
    case = make_case(3, 8, 10)
    found = run(case, k)
    assert found.ids.shape == (3, k)
    assert all(sorted(row[:10].tolist()) == list(range(10)) for row in found.ids)
    assert (found.ids[:, 10:] == -1).all()
    assert (found.z[:, 10:] == -torch.inf).all()


@pytest.mark.parametrize("k", [3, 70])
def test_ignored_rows_have_none(k: int) -> None:
    case = make_case(9, 8, 100)
    case.targets[4] = -100
    found = run(case, k)
    assert (found.ids[4] == -1).all()
    assert (found.z[4] == -torch.inf).all()
    alone = run(case.rows(slice(5, 6)), k)
    assert same_bits(found.z[5:6], alone.z)
    assert torch.equal(found.ids[5:6], alone.ids)


def test_the_pass_gives_the_partials_that_it_gives_without() -> None:
    case = make_case(70, 24, 400, k=2, bias=True)
    plain = linear.partials(case.hidden, case.weight, case.targets, split=128, **case.more())
    with TritonHarness():
        found, _ = linear.partials_with_top(
            case.hidden, case.weight, case.targets, 5, split=128, **case.more()
        )
    for x, y in zip(found, plain, strict=True):
        assert same_bits(x, y)


def test_chunks_are_watched() -> None:
    case = make_case(140, 24, 400)
    with TritonHarness(reused=("chunk",)):
        found = top_of_chunks(
            case.hidden,
            case.weight,
            case.targets,
            5,
            chunk=128,
            chunk_bytes=4 * 4 * 64 * 128,
            **case.more(),
        )
    assert torch.equal(found.ids, run(case, 5).ids)


def test_ids_are_those_of_the_whole_vocabulary() -> None:
    case = make_case(5, 24, 256)
    wanted = run(case, 4)
    for k in (4, 70):
        halves = [
            linear.partials_with_top(
                case.hidden,
                targets=case.targets,
                k=k,
                inv_temperature=case.inv_temperature,
                **case.tokens(slice(begin, begin + 128)),
            )[1]
            for begin in (0, 128)
        ]
        joined = torch.cat([half.z for half in halves], dim=1)
        ids = torch.cat([half.ids for half in halves], dim=1)
        assert torch.equal(ids.gather(1, joined.topk(4).indices), wanted.ids)


@pytest.mark.parametrize("top", [-1, 65])
def test_one_pass_has_a_limit(top: int) -> None:
    case = make_case(5, 24, 100)
    with pytest.raises(ValueError, match=f"top is {top}; must be from 0 to 64"):
        linear.partials_and_top(case.hidden, case.weight, case.targets, top=top, **case.more())
