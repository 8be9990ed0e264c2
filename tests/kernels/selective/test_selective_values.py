"""The selective log-softmax against float64, on the CPU path and in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

from selective_cases import BACKENDS, Case, assert_right, distance, make_case

from tinkergate_kernels.selective import selective_logprob, selective_scores

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("backend", BACKENDS)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "vocab", "count"),
    [(1, 1, None), (3, 2, 1), (5, 63, 3), (7, 1000, None), (4, 2048, 2), (3, 4097, None)],
)
def test_values_and_gradients(
    backend: str, dtype: torch.dtype, rows: int, vocab: int, count
) -> None:
    assert_right(make_case(rows, vocab, count, dtype=dtype, seed=rows + vocab), backend)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_than_one_whole_tile(backend: str, dtype: torch.dtype) -> None:
    assert_right(make_case(2, 2 * 8192 + 5, 3, dtype=dtype, topk=3), backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_full_vocabulary_on_the_cpu(dtype: torch.dtype) -> None:
    assert_right(make_case(40, 49152, dtype=dtype), "cpu")


def test_full_vocabulary_in_the_interpreter() -> None:
    assert_right(make_case(2, 49152, dtype=torch.bfloat16), "gpu")


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [None, 5.0, 30.0])
@pytest.mark.parametrize("temperature", [0.5, None])
def test_bias_softcap_and_temperature(backend: str, dtype, softcap, temperature) -> None:
    case = make_case(
        4, 1100, 2, dtype=dtype, bias=True, softcap=softcap, row_temperature=temperature is None
    )
    if temperature is not None:
        case = case.with_(temperature=temperature, logits=case.logits / 2)
    assert_right(case, backend)


@both
def test_a_softcap_far_above_the_logits_hardly_bends_them(backend: str) -> None:
    case = make_case(3, 500, softcap=1000.0)
    case = case.with_(logits=case.logits / 4)
    assert_right(case, backend)


@both
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("parts", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_any_of_the_results_may_send_a_gradient_back(backend: str, entropy, parts) -> None:
    case = make_case(4, 300, 2, entropy=entropy)
    wanted, _ = case.expected()
    leaf = case.logits.clone().requires_grad_()
    double = case.logits.double().requires_grad_()
    parts = [i for i in parts if i < 2 or entropy]
    if not parts:
        assert wanted.entropy is None
        return
    found = case.scores(backend, leaf)
    reference = case.with_(logits=double)
    total = sum((found[i] * case.upstream[i]).sum() for i in parts)
    (gradient,) = torch.autograd.grad(total, leaf)
    scores = _reference(reference)
    total = sum((scores[i] * case.upstream[i].double()).sum() for i in parts)
    (expected,) = torch.autograd.grad(total, double)
    assert distance(gradient, expected) <= 5e-6 * float(expected.abs().max())


def _reference(case: Case):
    from tinkergate_kernels.reference.selective import selective_scores as reference

    return reference(case.logits, case.targets, entropy=case.entropy)


@both
@pytest.mark.parametrize("count", [20, 70, 200])
def test_many_targets_some_of_them_the_same(backend: str, count: int) -> None:
    case = make_case(3, 90, count)
    case.targets[0, ::2] = 17
    assert_right(case, backend)


@both
@pytest.mark.parametrize("topk", [1, 2, 5, 17, 64, 65, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_topk_of_few(backend: str, topk: int, dtype: torch.dtype) -> None:
    assert_right(make_case(4, 90, dtype=dtype, topk=topk), backend)


@both
def test_topk_settles_ties_by_the_lower_id(backend: str) -> None:
    logits = torch.tensor([[0.0, 2.0, -0.0, 2.0, 0.0, -1.0]])
    case = Case(logits, torch.zeros(1, dtype=torch.int64), topk=6)
    assert case.scores(backend).topk_ids.tolist() == [[1, 3, 0, 2, 4, 5]]
    flat = Case(torch.full((1, 5000), -3.0), torch.zeros(1, dtype=torch.int64), topk=9)
    assert flat.scores(backend).topk_ids.tolist() == [list(range(9))]


@both
def test_topk_of_rows_in_the_worst_order(backend: str) -> None:
    logits = torch.arange(5000.0)[None] / 100
    case = Case(logits, torch.zeros(1, dtype=torch.int64), topk=4)
    assert case.scores(backend).topk_ids.tolist() == [[4999, 4998, 4997, 4996]]


@both
def test_topk_of_forbidden_tokens_comes_last(backend: str) -> None:
    logits = torch.full((1, 40), -math.inf)
    logits[0, [30, 7]] = torch.tensor([1.0, 2.0])
    scores = Case(logits, torch.tensor([7]), topk=4).scores(backend)
    assert scores.topk_ids.tolist() == [[7, 30, 0, 1]]
    assert scores.topk_logprobs[0, 2:].tolist() == [-math.inf, -math.inf]


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("level", [-1e30, -1e4, 0.0, 1e4, 1e30])
def test_equal_logits_of_any_size_are_a_uniform_prediction(backend, dtype, level) -> None:
    if dtype == torch.float16 and abs(level) > 6e4:
        level = math.copysign(6e4, level)
    case = Case(torch.full((2, 777), level, dtype=dtype), torch.tensor([3, 776]))
    scores, gradient = case.run(backend)
    uniform = torch.full((2,), -math.log(777))
    assert distance(scores.logprob, uniform) <= 1e-6
    assert distance(scores.entropy, -uniform) <= 1e-6
    rest = gradient[0, 10:].double()
    wanted = (case.upstream[1][0] - case.upstream[0][0]).double() / 777
    assert distance(rest, wanted.expand_as(rest)) <= 2.0**-8 * float(wanted.abs()) + 1e-8


@both
@pytest.mark.parametrize("shift", [-1024.0, 1024.0])
def test_a_shift_of_all_logits_changes_nothing(backend: str, shift: float) -> None:
    case = make_case(5, 700, ignored=False)
    case = case.with_(logits=(case.logits * 64).round() / 64)  # which 1024 more is exact for
    shifted = case.with_(logits=case.logits + shift)
    assert torch.equal(shifted.logits - shift, case.logits)
    plain, moved = case.scores(backend), shifted.scores(backend)
    assert distance(moved.logprob, plain.logprob) <= 2e-6
    assert distance(moved.entropy, plain.entropy) <= 2e-6
    assert distance(case.run(backend)[1], shifted.run(backend)[1]) <= 1e-6


@both
def test_half_of_the_vocabulary_forbidden(backend: str) -> None:
    case = make_case(4, 1000, ignored=False)
    case.logits[:, ::2] = -math.inf
    case.targets |= 1
    narrow = case.with_(logits=case.logits[:, 1::2].contiguous(), targets=case.targets // 2)
    (found, gradient), (wanted, wanted_gradient) = case.run(backend), narrow.expected()
    for x, y in zip(found[:3], wanted[:3], strict=True):
        assert distance(x, y) <= 1e-5
    assert not gradient[:, ::2].any()
    assert distance(gradient[:, 1::2], wanted_gradient) <= 5e-6
    case.targets[0] = 10
    scores, gradient = case.run(backend)
    assert scores.logprob[0] == -math.inf
    assert not gradient.isnan().any()


@both
def test_whole_tiles_forbidden(backend: str) -> None:
    case = make_case(1, 20000)
    case.logits[:, :9000] = -math.inf
    case.targets[0] = 15000
    narrow = case.with_(logits=case.logits[:, 9000:].contiguous(), targets=case.targets - 9000)
    assert distance(case.scores(backend).logprob, narrow.expected()[0].logprob) <= 1e-5


@both
def test_one_certain_token(backend: str) -> None:
    logits = torch.zeros(3, 600)
    logits[:, 5] = 1000
    case = Case(logits, torch.tensor([5, 6, 5]))
    scores, gradient = case.run(backend)
    assert scores.logprob.tolist() == [0.0, -1000.0, 0.0]
    assert scores.entropy.tolist() == [0.0, 0.0, 0.0]
    assert distance(gradient[1, 6], case.upstream[0][1]) <= 1e-6


@both
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_nothing_to_do(backend: str, shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape[0], 9)
    case = Case(logits, torch.zeros(shape, dtype=torch.int64), topk=2)
    scores, gradient = case.run(backend)
    assert scores.logprob.shape == shape
    assert scores.topk_ids.shape == (shape[0], 2)
    assert not gradient.any()
    assert not scores.logsumexp.any()


@both
def test_rows_without_a_target_are_not_looked_at(backend: str) -> None:
    case = make_case(4, 50, 2, topk=3, ignored=False)
    case.targets[2] = torch.tensor([-100, 50])
    case.logits[2] = math.nan
    scores, gradient = case.run(backend)
    assert scores.logprob[2].tolist() == [0.0, 0.0]
    assert scores.logsumexp[2] == scores.entropy[2] == 0
    assert scores.topk_ids[2].tolist() == [-1, -1, -1]
    assert scores.topk_logprobs[2].tolist() == [0.0, 0.0, 0.0]
    assert not gradient[2].any()
    assert not gradient.isnan().any()


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_may_be_written_over_the_logits(backend: str, dtype: torch.dtype) -> None:
    case = make_case(4, 5000, 2, dtype=dtype)
    _, wanted = case.run(backend)
    leaf = case.logits.clone().requires_grad_()
    logits = leaf * 1
    scores = case.with_(overwrite_logits=True).scores(backend, logits)
    total = sum((x * g).sum() for x, g in zip(scores[:3], case.upstream, strict=True))
    (gradient,) = torch.autograd.grad(total, logits, retain_graph=True)
    assert gradient.data_ptr() == logits.data_ptr()
    assert torch.equal(gradient, wanted)
    with pytest.raises(RuntimeError, match="overwritten"):
        torch.autograd.grad(total, logits)


@both
def test_whoever_else_needs_overwritten_logits_is_told(backend: str) -> None:
    leaf = torch.randn(2, 30, requires_grad=True)
    logits = leaf.exp()  # whose own backward needs them
    case = Case(logits, torch.tensor([1, 2]), overwrite_logits=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        case.scores(backend, logits).logprob.sum().backward()


@both
def test_rows_and_columns_may_lie_apart(backend: str) -> None:
    case = make_case(4, 300)
    wide = torch.zeros(4, 320)
    wide[:, :300] = case.logits
    turned = case.logits.T.contiguous().T
    for logits in (wide[:, :300], turned):
        leaf = logits.detach().requires_grad_()
        scores = case.scores(backend, leaf)
        assert torch.equal(scores.logprob, case.scores(backend).logprob)
        (gradient,) = torch.autograd.grad((scores.logprob * case.upstream[0]).sum(), leaf)
        leaf = case.logits.clone().requires_grad_()
        total = (case.scores(backend, leaf).logprob * case.upstream[0]).sum()
        assert torch.equal(gradient, torch.autograd.grad(total, leaf)[0])


def test_the_public_functions_are_the_cpu_path_on_a_cpu() -> None:
    case = make_case(5, 200, 2, bias=True, softcap=20.0, temperature=0.8, topk=3)
    arguments = {"temperature": 0.8, "softcap": 20.0, "bias": case.bias}
    scores = selective_scores(case.logits, case.targets, entropy=True, topk=3, **arguments)
    for x, y in zip(scores, case.scores("cpu"), strict=True):
        assert torch.equal(x, y)
    logprob = selective_logprob(case.logits, case.targets, **arguments)
    assert torch.equal(logprob, scores.logprob)
    plain = selective_scores(case.logits, case.targets)
    assert plain.entropy is None
    assert plain.topk_ids is None
    assert plain.topk_logprobs is None
    assert logprob.grad_fn is None


def test_second_derivatives_are_refused() -> None:
    case = make_case(2, 20)
    leaf = case.logits.requires_grad_()
    logprob = selective_logprob(leaf, case.targets)
    (gradient,) = torch.autograd.grad(logprob.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


TARGETS = torch.zeros(4, dtype=torch.int64)
BAD: list[tuple[dict[str, object], str]] = [
    ({"logits": torch.zeros(4)}, r"logits have shape \[4\]; must be \[\*, \*\]"),
    ({"logits": torch.zeros(4, 0)}, "logits have no columns"),
    ({"logits": torch.zeros(4, 3).double()}, "logits are torch.float64; must be float32"),
    ({"targets": TARGETS[:3]}, r"targets have shape \[3\]; must be \[4\] or \[4, K\]"),
    ({"targets": TARGETS.int()}, "targets are torch.int32; must be torch.int64"),
    ({"temperature": 0.0}, "temperature is 0.0; must be finite and positive"),
    ({"temperature": torch.ones(3)}, r"temperature has shape \[3\]; must be \[4\]"),
    ({"temperature": torch.tensor([1.0, -2, 1, 1])}, "temperature holds -2.0; must be finite"),
    ({"temperature": torch.ones(4, requires_grad=True)}, "temperature requires a gradient"),
    ({"temperature": torch.ones(4).int()}, "temperature is torch.int32; must be a floating"),
    ({"softcap": math.inf}, "softcap is inf; must be finite and positive, or None"),
    ({"bias": torch.zeros(4)}, r"bias has shape \[4\]; must be \[3\]"),
    ({"bias": torch.zeros(3, requires_grad=True)}, "bias requires a gradient; only logits may"),
    ({"bias": torch.zeros(3, device="meta")}, "bias is on meta; logits are on cpu"),
    ({"topk": 4}, "topk is 4; must be at least 0 and at most 3"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"logits": torch.zeros(4, 3), "targets": TARGETS}
    selective_scores(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        selective_scores(**(arguments | change))  # type: ignore[arg-type]
