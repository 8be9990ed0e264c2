"""What the harness proves of the selective kernels: bounds, bytes, races, order, large offsets."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from selective_cases import BACKENDS, backend, distance, make_case
from triton_harness import TritonHarness, same_in_any_order

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, None), (5, 63, 3), (4, 8192, None), (3, 8193, 2), (3, 4097, 70)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "vocab", "count"), SHAPES)
@pytest.mark.parametrize("topk", [0, 1, 5])
def test_forward_reads_once_and_writes_once(dtype, rows: int, vocab: int, count, topk: int) -> None:
    case = make_case(rows, vocab, count, dtype=dtype, topk=min(topk, vocab))
    with TritonHarness() as harness:
        scores = case.scores("gpu")
    scored = (case.targets >= 0) & (case.targets < vocab)
    live = int(scored.view(rows, -1).any(dim=1).sum())
    itemsize = case.logits.element_size()
    assert harness.programs == rows
    assert harness.read["logits"] == live * vocab * itemsize + int(scored.sum()) * itemsize
    assert harness.read["targets"] == 2 * case.targets.nbytes
    assert harness.written["logprob"] == scores.logprob.nbytes
    assert harness.written["entropy"] == scores.entropy.nbytes
    if topk:
        assert harness.written["topk_ids"] == scores.topk_ids.nbytes
        assert harness.written["topk_logprobs"] == scores.topk_logprobs.nbytes


def test_bytes_are_those_of_the_logits() -> None:
    case = make_case(2, 49152, dtype=torch.bfloat16)
    leaf = case.logits.requires_grad_()
    with TritonHarness() as harness:
        scores = case.scores("gpu", leaf)
    assert harness.read.total() <= 1.001 * leaf.nbytes
    with TritonHarness() as harness:
        scores.logprob.sum().backward()
    assert harness.read.total() <= 1.001 * leaf.nbytes + 13 * 64 * leaf.shape[0]
    assert harness.read["logits"] == leaf.nbytes
    assert harness.written == {"grad": leaf.nbytes}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "vocab", "count"), SHAPES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_backward_reads_once_and_writes_once(dtype, rows, vocab, count, overwrite: bool) -> None:
    case = make_case(rows, vocab, count, dtype=dtype, bias=True, softcap=20.0)
    case = case.with_(overwrite_logits=overwrite)
    logits = case.logits.requires_grad_() * 1
    scores = case.scores("gpu", logits)
    total = sum((x * g).sum() for x, g in zip(scores[:3], case.upstream, strict=True))
    with TritonHarness(inplace=["logits"] if overwrite else []) as harness:
        torch.autograd.grad(total, logits)
    live = int(((case.targets >= 0) & (case.targets < vocab)).view(rows, -1).any(dim=1).sum())
    assert harness.read["logits"] == live * vocab * logits.element_size()
    assert harness.written["grad"] == logits.nbytes


def test_ignored_rows_read_no_logits() -> None:
    case = make_case(3, 9000, 2, topk=4)
    case.targets[:] = torch.tensor([-100, 9000])
    with TritonHarness() as harness:
        scores, gradient = case.run("gpu")
    assert harness.read["logits"] == 0
    assert harness.written["grad"] == gradient.nbytes
    assert not gradient.any()
    assert not scores.logprob.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_programs_changes_no_bit(dtype: torch.dtype) -> None:
    case = make_case(5, 9001, 3, dtype=dtype, topk=3, row_temperature=True)

    def run() -> list[torch.Tensor]:
        scores, gradient = case.run("gpu")
        return [*scores, gradient]

    same_in_any_order(run)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_bits_in_any_batch(name: str, dtype: torch.dtype) -> None:
    case = make_case(7, 3000, 2, dtype=dtype, topk=3, bias=True, row_temperature=True, softcap=40.0)
    whole, gradients = case.run(name)
    for row in range(7):
        at = slice(row, row + 1)
        alone = case.with_(
            logits=case.logits[at], targets=case.targets[at], temperature=case.temperature[at]
        )
        alone.upstream = tuple(x[at] for x in case.upstream)
        scores, gradient = alone.run(name)
        for x, y in zip(scores, whole, strict=True):
            assert torch.equal(x, y[at])
        assert torch.equal(gradient, gradients[at])


@pytest.mark.parametrize(
    ("name", "vocab", "dtype"),
    [
        ("cpu", 8200, torch.float32),
        ("cpu", 700, torch.bfloat16),
        ("cpu", 700, torch.float16),
        ("gpu", 300, torch.float32),
    ],
    ids=str,
)
def test_a_row_is_the_same_bits_alone_in_7_and_in_500(name: str, vocab: int, dtype) -> None:
    case = make_case(500, vocab, dtype=dtype)
    rows = torch.tensor([0, 1, 2, 250, 483, 484, 499])
    whole = case.scores(name)
    for few in (rows, rows[:1], rows[4:5], rows[6:]):
        some = case.with_(logits=case.logits[few], targets=case.targets[few])
        for x, y in zip(some.scores(name)[:3], whole[:3], strict=True):
            assert torch.equal(x, y[few])


def test_a_row_beyond_two_to_the_31_elements() -> None:
    rows, vocab = 46000, 49152
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    logits = torch.empty(rows, vocab, dtype=torch.bfloat16)  # 4.5 GB of addresses, no memory
    last = rows - 1
    assert last * vocab > 2**31
    small = make_case(1, vocab, dtype=torch.bfloat16)
    logits[last] = small.logits[0]
    targets = torch.zeros(rows, 1, dtype=torch.int64)
    targets[last] = small.targets
    module = backend("gpu")
    with TritonHarness(only=(last,)) as harness:
        sums = module.forward(logits, targets, None, 1.0, None, True, 0)
    assert harness.programs == 1
    assert harness.read["logits"] == vocab * 2 + 2
    wanted, _ = small.expected()
    assert distance(sums.logprob[last], wanted.logprob) <= 1e-5
    statistics = (sums.maximum, sums.log_total, sums.entropy)
    gradients = (torch.ones(rows, 1), None, None)
    tile = vocab // module.BACKWARD_TILE - 1
    with TritonHarness(only=(last, tile), inplace=["logits"]) as harness:
        module.backward(logits, targets, None, 1.0, None, statistics, gradients, logits)
    assert harness.written["grad"] == module.BACKWARD_TILE * 2
    at = slice(tile * module.BACKWARD_TILE, vocab)
    p = torch.softmax(small.logits[0].double(), dim=0)
    onehot = torch.zeros(vocab).double()
    onehot[small.targets] = 1
    wanted_gradient = (onehot - p)[at]
    error = (logits[last, at].double() - wanted_gradient).abs()
    assert (error <= 2.0**-8 * wanted_gradient.abs() + 1e-8).all()
    assert torch.equal(logits[last, : at.start], small.logits[0, : at.start])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KB


def test_the_cpu_path_makes_nothing_as_large_as_the_logits() -> None:
    script = """
import resource, torch
from tinkergate_kernels.selective import selective_scores
logits = torch.zeros(512, 49152, dtype=torch.bfloat16).requires_grad_()  # 50 MB
targets = torch.ones(512, dtype=torch.int64)
selective_scores(logits[:8], targets[:8], entropy=True, topk=5).logprob.sum().backward()
logits.grad = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
selective_scores(logits.detach(), targets, entropy=True, topk=5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 12 << 10  # KB
