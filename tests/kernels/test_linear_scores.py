"""`linear_scores` and `linear_partials` against float64; what batches and parts must not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tinkergate_kernels import (
    Lora,
    concatenated,
    linear_logprob,
    linear_partials,
    linear_scores,
    merge,
)
from tinkergate_kernels.reference.linear import linear_logits


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(n: int, d: int, v: int, **more: Any) -> dict[str, Any]:
    """Arguments whose logits have a standard deviation of about 4."""
    tokens = torch.randint(v, (n, 2), generator=torch.Generator().manual_seed(7))
    return {
        "hidden": normal(n, d, seed=1) * 4,
        "weight": normal(v, d, seed=2) / d**0.5,
        "targets": tokens,
        **more,
    }


def exact(arguments: dict[str, Any]) -> Tensor:
    """The logits in float64."""
    given = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
        if name != "targets"
    }
    if lora := given.get("lora"):
        given["lora"] = Lora(lora[0].double(), lora[1].double(), lora[2])
    return linear_logits(**given)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "bias": normal(1700, seed=3)},
    {"temperature": torch.linspace(0.5, 2, 90), "softcap": 7.0},
    {"lora": (normal(3, 16, seed=4), normal(1700, 3, seed=5) * 0.1, 1.5)},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_whole_logits(variant: dict[str, Any]) -> None:
    arguments = case(90, 16, 1700, **variant)
    found = linear_scores(**arguments, entropy=True, topk=9)
    logits = exact(arguments)
    logprobs = torch.log_softmax(logits, 1)
    assert (found.logprob - logprobs.gather(1, arguments["targets"])).abs().max() <= 1e-5
    assert (found.logsumexp - logits.logsumexp(1)).abs().max() <= 1e-5
    assert found.entropy is not None
    assert (found.entropy + (logprobs.exp() * logprobs).sum(1)).abs().max() <= 1e-5
    best = logprobs.topk(9, dim=1)
    assert torch.equal(found.topk_ids, best.indices)
    assert (found.topk_logprobs - best.values).abs().max() <= 1e-5
    assert found.logprob.equal(linear_logprob(**arguments))


@pytest.mark.parametrize("k", [1, 600, 1700, 5000])
def test_any_number_of_likeliest_tokens(k: int) -> None:
    arguments = case(5, 8, 1700)
    found = linear_scores(**arguments, topk=k)
    logprobs = torch.log_softmax(exact(arguments), 1)
    count = min(k, 1700)
    assert found.topk_ids.shape == found.topk_logprobs.shape == (5, count)
    assert (found.topk_logprobs - logprobs.topk(count).values).abs().max() <= 1e-5
    assert (logprobs.gather(1, found.topk_ids) - found.topk_logprobs).abs().max() <= 1e-5
    assert found.entropy is None


def test_equally_likely_tokens_come_by_id() -> None:
    arguments = case(3, 4, 1500)
    arguments["hidden"] = torch.zeros(3, 4)
    found = linear_scores(**arguments, topk=1200)
    assert found.topk_ids.tolist() == [list(range(1200))] * 3
    bias = torch.zeros(1500)
    bias[[700, 20, 1400]] = 5.0
    found = linear_scores(**arguments, bias=bias, topk=5)
    assert found.topk_ids.tolist() == [[20, 700, 1400, 0, 1]] * 3


def test_forbidden_tokens_come_last_and_say_so() -> None:
    bias = torch.full((600,), -torch.inf)
    bias[100:103] = 0
    arguments = case(4, 4, 600, bias=bias)
    arguments["targets"][:, 0], arguments["targets"][:, 1] = 101, 5
    found = linear_scores(**arguments, entropy=True, topk=4)
    assert torch.isfinite(found.logprob[:, 0]).all()
    assert (found.logprob[:, 1] == -torch.inf).all()
    assert found.topk_ids[:, :3].sort(dim=1).values.tolist() == [[100, 101, 102]] * 4
    assert (found.topk_logprobs[:, 3] == -torch.inf).all()
    assert found.entropy is not None
    assert torch.isfinite(found.entropy).all()


def test_rows_without_targets_are_not_read() -> None:
    arguments = case(6, 4, 600)
    arguments["targets"][2:4] = -100
    arguments["hidden"][2:4] = torch.nan
    found = linear_scores(**arguments, entropy=True, topk=3)
    for answer in (found.logprob, found.logsumexp, found.entropy, found.topk_logprobs):
        assert answer is not None
        assert torch.isfinite(answer).all()
        assert not answer[2:4].any()
    assert (found.topk_ids[2:4] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("width", [64, 100, 576])
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_batch(
    dtype: torch.dtype, grad: bool, width: int
) -> None:
    arguments = case(600, width, 1100)
    arguments["hidden"] = arguments["hidden"].to(dtype)
    arguments["weight"] = arguments["weight"].to(dtype)

    def run(rows: slice) -> tuple[Tensor, Tensor]:
        hidden = arguments["hidden"][rows].clone().requires_grad_(grad)
        logprobs = linear_logprob(hidden, arguments["weight"], arguments["targets"][rows])
        if grad:
            logprobs.sum().backward()
            assert hidden.grad is not None
            return logprobs.detach(), hidden.grad
        return logprobs, logprobs

    whole = run(slice(0, 600))
    for rows in (slice(3, 4), slice(3, 10), slice(0, 500), slice(90, 600), slice(599, 600)):
        for part, all_rows in zip(run(rows), whole, strict=True):
            assert torch.equal(part, all_rows[rows])


@pytest.mark.parametrize("rank", [1, 3, 32])
@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("vocab", [700, 1700])
def test_so_is_one_with_all_the_options(rank: int, softcap: float | None, vocab: int) -> None:
    lora = (normal(rank, 24, seed=4) / 5, normal(vocab, rank, seed=5) * 0.2, 1.5)
    bias = normal(vocab, seed=3)
    arguments = case(700, 24, vocab, lora=lora, bias=bias, softcap=softcap)

    def run(rows: slice) -> list[Tensor | None]:
        own = arguments | {name: arguments[name][rows] for name in ("hidden", "targets")}
        temperature = torch.linspace(0.5, 2, 700)[rows]
        return [*linear_scores(**own, temperature=temperature, entropy=True, topk=7)]

    whole = run(slice(0, 700))
    for rows in (slice(3, 4), slice(3, 10), slice(31, 530), slice(640, 700)):
        for part, every in zip(run(rows), whole, strict=True):
            assert part is not None
            assert every is not None
            assert torch.equal(part, every[rows])


def test_the_number_of_threads_changes_no_bit_and_none_of_the_callers_settings() -> None:
    arguments = case(300, 24, 9000, lora=(normal(3, 24, seed=4), normal(9000, 3, seed=5), 0.1))
    threads, subnormal = torch.get_num_threads(), torch.tensor(1e-39)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            hidden = arguments["hidden"].clone().requires_grad_()
            logprobs = linear_logprob(**(arguments | {"hidden": hidden}))
            logprobs.sum().backward()
            assert torch.get_num_threads() == count
            assert (subnormal * 1).item() > 0
        finally:
            torch.set_num_threads(threads)
        assert hidden.grad is not None
        found.append((logprobs.detach(), hidden.grad))
    for logprobs, gradient in found[1:]:
        assert torch.equal(logprobs, found[0][0])
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_the_vocabulary_merge_to_the_same_bits(
    variant: dict[str, Any], parts: int
) -> None:
    split, vocab = 300, 1700
    arguments = case(90, 16, vocab, **variant)
    arguments["targets"][7, 0] = -100
    arguments["targets"][8] = vocab
    whole = merge(linear_partials(**arguments, split=split))
    step = -(-vocab // (parts * split)) * split
    pieces = []
    for start in range(0, vocab, step):
        mine = dict(arguments)
        span = slice(start, start + step)
        mine["weight"] = mine["weight"][span]
        if "bias" in mine:
            mine["bias"] = mine["bias"][span]
        if "lora" in mine:
            a, b, scale = mine["lora"]
            mine["lora"] = (a, b[span], scale)
        pieces.append(linear_partials(**mine, vocab_start=start, vocab_total=vocab, split=split))
    found = merge(concatenated(pieces))
    for ours, theirs in zip(found, whole, strict=True):
        assert torch.equal(ours, theirs)
    scores = linear_scores(**arguments, entropy=True)
    assert (found.logprob - scores.logprob).abs().max() <= 5e-6
    assert (found.logsumexp - scores.logsumexp).abs().max() <= 1e-5
    assert scores.entropy is not None
    assert (found.entropy - scores.entropy).abs().max() <= 1e-5


def test_parts_know_forbidden_tokens_from_those_of_other_parts() -> None:
    bias = torch.full((600,), -torch.inf)
    bias[100:103] = 0
    arguments = case(4, 4, 600, bias=bias)
    arguments["targets"][:, 0], arguments["targets"][:, 1] = 101, 5
    arguments["targets"][3] = 600
    found = merge(linear_partials(**arguments, split=150, vocab_total=600))
    torch.testing.assert_close(found.logprob, linear_logprob(**arguments), rtol=0, atol=2e-6)
    assert (found.logprob[:3, 1] == -torch.inf).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"split": 0}, "split is 0; must be positive"),
        ({"vocab_start": -1}, "vocab_start is -1"),
        ({"vocab_start": 5, "vocab_total": 10}, "vocab_start is 5; must be from 0 to 1"),
    ],
)
def test_parts_that_make_no_sense_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_partials(**case(2, 4, 9), **more)


def test_a_negative_number_of_likeliest_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="topk is -1; must not be negative"):
        linear_scores(**case(2, 4, 9), topk=-1)


@given(
    n=st.integers(0, 70),
    d=st.integers(1, 20),
    v=st.integers(1, 1300),
    k=st.integers(0, 5),
    cap=st.sampled_from([None, 3.0]),
    seed=st.integers(0, 99),
)
def test_any_shape(n: int, d: int, v: int, k: int, cap: float | None, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    arguments = {
        "hidden": torch.randn(n, d, generator=draw) * 3,
        "weight": torch.randn(v, d, generator=draw),
        "targets": torch.randint(-2, v + 2, (n, k), generator=draw),
        "softcap": cap,
    }
    hidden = arguments["hidden"].requires_grad_()
    logprobs = linear_logprob(**arguments)
    logprobs.sum().backward()
    inside = (arguments["targets"] >= 0) & (arguments["targets"] < v)
    wanted = torch.log_softmax(exact(arguments | {"hidden": hidden.detach()}), 1)
    expected = wanted.gather(1, arguments["targets"].clamp(0, v - 1)).where(inside, 0.0)
    assert logprobs.shape == (n, k)
    if n and k:
        assert (logprobs - expected).abs().max() <= 2e-5
        assert logprobs.max() <= 0
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
