"""What holds of the selective log-softmax for any logits, targets and settings."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st
from selective_cases import Case, assert_right, distance, make_case
from triton_harness import TritonHarness


@st.composite
def cases(draw: st.DrawFn, *, most_tokens: int, most_rows: int) -> Case:
    vocab = draw(st.integers(1, most_tokens))
    case = make_case(
        draw(st.integers(0, most_rows)),
        vocab,
        draw(st.sampled_from([None, 1, 2, 5])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        seed=draw(st.integers(0, 2**31)),
        bias=draw(st.booleans()),
        row_temperature=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 5.0, 50.0])),
        entropy=draw(st.booleans()),
        topk=draw(st.integers(0, min(vocab, 8))),
    )
    if draw(st.booleans()):
        case.targets[torch.rand(case.targets.shape) < 0.5] = draw(
            st.sampled_from([-1, -100, vocab])
        )
    return case


@settings(max_examples=40)
@given(cases(most_tokens=20000, most_rows=40))
def test_the_cpu_path_is_right(case: Case) -> None:
    check(case, "cpu")


@settings(max_examples=25)
@given(cases(most_tokens=3000, most_rows=5))
def test_the_kernels_are_right_and_free_of_races(case: Case) -> None:
    with TritonHarness():
        check(case, "gpu")


def check(case: Case, name: str) -> None:
    if case.softcap is not None and case.topk:
        # Bent logits may be equal in float32 and not in float64: only their values are compared.
        found, wanted = case.scores(name).topk_logprobs, case.expected()[0].topk_logprobs
        assert distance(found, wanted) <= 2e-5
        case = case.with_(topk=0)
    assert_right(case, name)


@given(
    st.lists(st.floats(-80, 80, width=32), min_size=2, max_size=30),
    st.floats(-1000, 1000, width=16),
)
def test_probabilities_add_up_whatever_is_added_to_all_logits(logits, shift) -> None:
    x = torch.tensor([logits])
    targets = torch.arange(len(logits))[None]
    for moved in (x, x + shift):
        scores = Case(moved, targets).scores("cpu")
        assert (scores.logprob <= 0).all()
        assert abs(float(scores.logprob.double().exp().sum()) - 1) <= 1e-5
        assert scores.entropy >= 0
