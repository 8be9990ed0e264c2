"""The CPU path on the real states of the default model, whose logits go up to 45: errors against
float64, and what must not change a bit."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from real_states import RealStates, real_states
from torch import Tensor

from tinkergate_kernels import concatenated, linear_logprob, linear_partials, linear_scores, merge

COUNT, TOP = 2048, 5
ROWS = (512, COUNT)

pytestmark = pytest.mark.slow


class Exact(NamedTuple):
    """The same in float64."""

    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor
    gradient: Tensor
    """Of the states, for `UPSTREAM`."""


UPSTREAM = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def given(default_model_dir: Path) -> RealStates:
    return real_states(default_model_dir, COUNT)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def states(request: pytest.FixtureRequest, given: RealStates) -> RealStates:
    """In each dtype that the engine has base models in."""
    dtype: torch.dtype = request.param
    return RealStates(given.hidden.to(dtype), given.weight.to(dtype), given.targets)


@pytest.fixture(scope="module")
def exact(states: RealStates) -> Exact:
    weight = states.weight.double()
    parts = []
    for begin in range(0, COUNT, 128):
        rows = slice(begin, begin + 128)
        targets = states.targets[rows]
        logits = states.hidden[rows].double() @ weight.T
        sums = logits.logsumexp(1)
        every = logits.sub_(sums[:, None])
        picked = every.gather(1, targets[:, None])[:, 0]
        p = every.exp()
        pull = weight[targets] - p @ weight
        entropy = -(p.mul_(every)).sum(1)
        parts.append((picked, sums, entropy, UPSTREAM[rows, None].double() * pull))
    return Exact(*(torch.cat(field) for field in zip(*parts, strict=True)))


def error(found: Tensor, wanted: Tensor, count: int) -> float:
    return float((found.detach().double() - wanted[:count]).abs().max())


@pytest.mark.parametrize("count", ROWS)
def test_logprobs_and_gradient(states: RealStates, exact: Exact, count: int) -> None:
    full = states.hidden.dtype == torch.float32
    hidden = states.hidden[:count].clone().requires_grad_()
    logprobs = linear_logprob(hidden, states.weight, states.targets[:count])
    logprobs.backward(UPSTREAM[:count])
    assert error(logprobs, exact.logprob, count) <= (1e-5 if full else 2e-5)
    assert float(logprobs.detach().max()) <= 0
    assert hidden.grad is not None
    largest = float(exact.gradient[:count].abs().max())
    assert error(hidden.grad, exact.gradient, count) <= (5e-6 if full else 5e-3) * largest


@pytest.mark.parametrize("count", ROWS)
def test_scores(states: RealStates, exact: Exact, count: int) -> None:
    full = states.hidden.dtype == torch.float32
    targets = states.targets[:count]
    found = linear_scores(states.hidden[:count], states.weight, targets, entropy=True, topk=TOP)
    assert found.entropy is not None
    assert error(found.logprob, exact.logprob, count) <= (1e-5 if full else 2e-5)
    assert error(found.logsumexp, exact.logsumexp, count) <= (1e-5 if full else 2e-5)
    assert error(found.entropy, exact.entropy, count) <= (1e-5 if full else 5e-5)
    hidden = states.hidden[:count].double()
    logits = (states.weight[found.topk_ids].double() * hidden[:, None]).sum(2)
    wanted = logits - exact.logsumexp[:count, None]
    assert error(found.topk_logprobs, wanted, count) <= (1e-5 if full else 2e-5)
    # The same token has the same logprob, and the likeliest come first.
    same = found.topk_ids == targets[:, None]
    assert same.any()
    assert torch.equal(found.topk_logprobs[same], found.logprob[same.any(1)])
    assert bool((found.topk_logprobs.diff(dim=1) <= 0).all())


def test_parts_of_the_vocabulary(states: RealStates, exact: Exact) -> None:
    full = states.hidden.dtype == torch.float32
    hidden, targets = states.hidden[:512], states.targets[:512]
    found = []
    for parts in (1, 2, 4):
        step = len(states.weight) // parts
        pieces = [
            linear_partials(
                hidden,
                states.weight[start : start + step],
                targets,
                vocab_start=start,
                vocab_total=len(states.weight),
            )
            for start in range(0, len(states.weight), step)
        ]
        found.append(merge(concatenated(pieces)))
    assert error(found[0].logprob[:, 0], exact.logprob, 512) <= (1e-5 if full else 2e-5)
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert torch.equal(ours, theirs)


def test_a_row_is_the_same_to_the_bit_alone_and_in_any_batch(states: RealStates) -> None:
    def scores(rows: slice) -> list[Tensor]:
        hidden, targets = states.hidden[rows], states.targets[rows]
        found = linear_scores(hidden, states.weight, targets, entropy=True, topk=TOP)
        leaf = hidden.clone().requires_grad_()
        logprobs = linear_logprob(leaf, states.weight, targets)
        logprobs.sum().backward()
        assert leaf.grad is not None
        assert torch.equal(logprobs, found.logprob)
        return [x for x in (*found, leaf.grad) if x is not None]

    whole = scores(slice(0, COUNT))
    assert all(torch.equal(x, y) for x, y in zip(scores(slice(0, COUNT)), whole, strict=True))
    for rows in (slice(0, 1), slice(300, 307), slice(300, 800), slice(COUNT - 1, COUNT)):
        for part, every in zip(scores(rows), whole, strict=True):
            assert torch.equal(part, every[rows])
