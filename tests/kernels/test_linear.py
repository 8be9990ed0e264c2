"""`linear_logprob` against the plain float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tinkergate_kernels import Lora, linear_logprob, reference
from tinkergate_kernels.cpu import backward, linear


@dataclass
class Case:
    """Arguments of `linear_logprob` in float32, with a gradient to send back."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0
    temperature: float | Tensor = 1.0
    softcap: float | None = None

    def run(self, **settings: Any) -> list[Tensor]:
        """The logprobs and the gradients of hidden, A and B."""
        leaves = [x.detach().clone().requires_grad_() for x in self._inputs()]
        lora = (leaves[1], leaves[2], self.scale) if self.a is not None else None
        logprobs = linear_logprob(
            leaves[0],
            self.weight,
            self.targets,
            bias=self.bias,
            lora=lora,
            temperature=self.temperature,
            softcap=self.softcap,
            **settings,
        )
        assert logprobs.dtype == torch.float32
        logprobs.backward(self.upstream)
        return [logprobs.detach(), *(_grad(leaf) for leaf in leaves)]

    def expected(self) -> list[Tensor]:
        """The same by autograd through whole logits in float64."""
        leaves = [x.detach().double().requires_grad_() for x in self._inputs()]
        lora = Lora(leaves[1], leaves[2], self.scale) if self.a is not None else None
        logprobs = reference.linear_logprob(
            leaves[0],
            self.weight.double(),
            self.targets,
            bias=None if self.bias is None else self.bias.double(),
            lora=lora,
            temperature=(
                self.temperature.double()
                if isinstance(self.temperature, Tensor)
                else self.temperature
            ),
            softcap=self.softcap,
        )
        logprobs.backward(self.upstream.double())
        return [logprobs.detach(), *(_grad(leaf) for leaf in leaves)]

    def _inputs(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.a, self.b) if x is not None]


def _grad(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    assert leaf.grad.dtype == leaf.dtype
    return leaf.grad


def make_case(
    n: int,
    d: int,
    v: int,
    *,
    k: int | None = None,
    rank: int = 0,
    bias: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    spread: float = 5.0,
) -> Case:
    """A random case; logits have a standard deviation of about `spread`."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    shape = (n,) if k is None else (n, k)
    return Case(
        hidden=normal(n, d) * spread,
        weight=normal(v, d) / d**0.5,
        targets=torch.randint(0, v, shape, generator=draw),
        upstream=normal(*shape),
        bias=normal(v) if bias else None,
        a=normal(rank, d) / d**0.5 if rank else None,
        b=normal(v, rank) * 0.2 if rank else None,
        scale=1.7,
        temperature=temperature,
    )


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest error, relative to the largest entry, or to 1 where all entries cancel out."""
    if not wanted.numel():
        return 0.0
    largest = float(wanted.abs().max())
    return float((found.double() - wanted).abs().max()) / (largest if largest > 1e-9 else 1.0)


def assert_agrees(found: list[Tensor], wanted: list[Tensor]) -> None:
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape
    if wanted[0].numel():
        assert float((found[0].double() - wanted[0]).abs().max()) <= 1e-5
    for x, y in zip(found[1:], wanted[1:], strict=True):
        assert relative(x, y) <= 5e-6


SHAPES = [(1, 1, 1), (1, 3, 2), (7, 5, 11), (33, 72, 504), (513, 16, 2049), (64, 64, 5000)]


@pytest.mark.parametrize(("n", "d", "v"), SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 8])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_values_and_gradients(n: int, d: int, v: int, rank: int, k: int | None) -> None:
    case = make_case(n, d, v, k=k, rank=rank, seed=n + d)
    assert_agrees(case.run(), case.expected())


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
def test_temperature_and_bias(temperature: float) -> None:
    case = make_case(19, 24, 300, k=2, rank=4, bias=True, temperature=temperature)
    case.hidden *= temperature
    assert_agrees(case.run(), case.expected())


def test_full_vocabulary() -> None:
    case = make_case(24, 576, 49152, rank=4)
    assert_agrees(case.run(), case.expected())


@pytest.mark.parametrize("keep_bytes", [0, 4 * 2000 * 600, 1 << 30])
def test_what_is_kept_for_the_backward_changes_nothing(keep_bytes: int) -> None:
    case = make_case(1100, 12, 2000, k=2, rank=3, bias=True)
    assert_agrees(case.run(keep_bytes=keep_bytes), case.expected())


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_softcap_and_a_temperature_for_each_row(rank: int, bias: bool) -> None:
    case = make_case(70, 12, 1700, k=2, rank=rank, bias=bias, spread=20.0)
    case.temperature = torch.linspace(0.3, 3, 70)
    case.hidden *= case.temperature[:, None] / 4
    assert_agrees(case.run(), case.expected())
    case.softcap = 8.0
    assert_agrees(case.run(), case.expected())


@pytest.mark.parametrize("softcap", [None, 6.0])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_trained_unembedding(softcap: float | None, rank: int) -> None:
    case = make_case(600, 8, 1000, k=2, rank=rank)
    case.softcap = softcap
    trained = case.weight.clone().requires_grad_()
    hidden = case.hidden.clone().requires_grad_()
    lora = None
    if case.a is not None and case.b is not None:
        lora = Lora(case.a, case.b, case.scale)
    linear_logprob(hidden, trained, case.targets, lora=lora, softcap=softcap).backward(
        case.upstream
    )
    exact = case.weight.double().requires_grad_()
    states = case.hidden.double().requires_grad_()
    double = None if lora is None else Lora(lora.a.double(), lora.b.double(), lora.scale)
    reference.linear_logprob(states, exact, case.targets, lora=double, softcap=softcap).backward(
        case.upstream.double()
    )
    assert relative(_grad(trained), _grad(exact)) <= 5e-6
    assert relative(_grad(hidden), _grad(states)) <= 5e-6


@pytest.mark.parametrize("k", [None, 2])
def test_targets_that_are_no_tokens_are_ignored(k: int | None) -> None:
    case = make_case(40, 8, 900, k=k, rank=2, bias=True)
    case.targets.view(-1)[::3] = -100
    case.targets.view(-1)[1::7] = 900
    if k:
        case.targets[5:9] = -1
    found, wanted = case.run(), case.expected()
    assert_agrees(found, wanted)
    ignored = (case.targets < 0) | (case.targets >= 900)
    assert not found[0][ignored].any()
    unread = ignored if k is None else ignored.all(dim=1)
    assert unread.any()
    assert not found[1][unread].any()


def test_rows_without_targets_are_not_even_read() -> None:
    case = make_case(20, 8, 900)
    case.targets[10:] = -100
    case.hidden[10:] = torch.nan
    found = case.run()
    assert torch.isfinite(found[0]).all()
    assert torch.isfinite(found[1]).all()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (5, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    case = make_case(shape[0], 6, 9, rank=2)
    case.targets = torch.zeros(shape, dtype=torch.int64)
    case.upstream = torch.zeros(shape)
    found = case.run()
    assert found[0].shape == shape
    for gradient in found[1:]:
        assert not gradient.any()


def test_the_same_target_many_times_adds_up() -> None:
    case = make_case(50, 8, 30, k=4, rank=2)
    case.targets[:] = 7
    assert_agrees(case.run(), case.expected())


@pytest.mark.parametrize("shift", [-1024.0, 1024.0])
def test_a_shift_of_all_logits_changes_only_by_rounding(shift: float) -> None:
    case = make_case(9, 16, 50)
    plain = case.run()[0]
    case.bias = torch.full((50,), shift)
    assert float((case.run()[0] - plain).abs().max()) < 2e-4  # two roundings near 1024


@pytest.mark.parametrize("level", [-1e30, -1e4, 1e4, 1e30])
def test_equal_logits_of_any_size_are_a_uniform_prediction(level: float) -> None:
    case = make_case(9, 16, 50)
    case.hidden = torch.zeros_like(case.hidden)
    case.bias = torch.full((50,), level)
    uniform = -torch.tensor(50.0).log()
    torch.testing.assert_close(case.run()[0], uniform.expand(9), rtol=0, atol=1e-6)


def test_forbidden_tokens_by_bias() -> None:
    case = make_case(11, 16, 40, rank=2)
    case.bias = torch.zeros(40)
    case.bias[10:] = -torch.inf
    case.targets %= 10
    narrow = make_case(11, 16, 40, rank=2)
    narrow.weight, narrow.targets = narrow.weight[:10], narrow.targets % 10
    assert narrow.b is not None
    narrow.b = narrow.b[:10]
    found, wanted = case.run(), narrow.expected()
    assert float(found[3][10:].abs().max()) < 1e-25
    assert_agrees([*found[:3], found[3][:10]], wanted)
    case.targets[3] = 20
    assert case.run()[0][3] == -torch.inf


def test_one_certain_token() -> None:
    case = make_case(4, 2, 3)
    case.hidden = torch.tensor([[1000.0, 0.0]] * 4)
    case.weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    case.targets = torch.tensor([0, 1, 2, 0])
    logprobs, gradient = case.run()
    assert logprobs.tolist() == [0.0, -1000.0, -2000.0, 0.0]
    assert not gradient[[0, 3]].any()
    torch.testing.assert_close(gradient[1, 0], -case.upstream[1])


def test_logprobs_are_never_positive() -> None:
    case = make_case(500, 4, 2, spread=40.0)
    assert float(case.run()[0].max()) <= 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    case = make_case(21, 32, 200, k=2, rank=4, bias=True)
    for name in ("hidden", "weight", "bias", "a", "b"):
        setattr(case, name, getattr(case, name).to(dtype))
    found, wanted = case.run(), case.expected()
    assert float((found[0].double() - wanted[0]).abs().max()) <= 2e-5
    for x, y in zip(found[1:], wanted[1:], strict=True):
        assert relative(x, y) <= 5e-3  # the rounding of the stored gradient


def test_without_gradients_nothing_is_saved() -> None:
    case = make_case(5, 8, 20, rank=2)
    assert case.a is not None
    assert case.b is not None
    a = case.a.requires_grad_()
    with torch.no_grad():
        logprobs = linear_logprob(case.hidden, case.weight, case.targets, lora=(a, case.b, 1.0))
    assert logprobs.grad_fn is None
    plain = linear_logprob(case.hidden, case.weight, case.targets)
    assert plain.grad_fn is None


@pytest.mark.parametrize("wanted", [("hidden",), ("a",), ("b",), ("a", "b"), ("hidden", "b")])
def test_only_the_gradients_asked_for(wanted: tuple[str, ...]) -> None:
    case = make_case(23, 8, 60, k=2, rank=3)
    expected = dict(zip(("hidden", "a", "b"), case.expected()[1:], strict=True))
    leaves = {name: getattr(case, name).clone() for name in expected}
    for name in wanted:
        leaves[name].requires_grad_()
    lora = (leaves["a"], leaves["b"], case.scale)
    linear_logprob(leaves["hidden"], case.weight, case.targets, lora=lora).backward(case.upstream)
    for name, leaf in leaves.items():
        if name in wanted:
            assert leaf.grad is not None
            assert relative(leaf.grad, expected[name]) <= 5e-6
        else:
            assert leaf.grad is None


def test_memory_stays_far_below_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(1024, 8, 20000, rank=2)
    sizes: list[int] = []

    def in_this_thread(items: Iterable[Any], work: Callable[[Any], None]) -> None:
        for item in items:
            work(item)

    for module in (linear, backward):
        monkeypatch.setattr(module, "run_all", in_this_thread)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.untyped_storage().nbytes())
            return out

    with Watch():
        case.run(keep_bytes=0)
    logits_bytes = 1024 * 20000 * 4
    assert sizes
    assert max(sizes) <= logits_bytes // 16


BAD: list[tuple[str, object, str]] = [
    ("hidden", torch.zeros(4), r"hidden has shape \[4\]; must be \[\*, \*\]"),
    ("hidden", torch.zeros(4, 3, dtype=torch.int64), "hidden is torch.int64; must be a floating"),
    ("weight", torch.zeros(10, 4), r"weight has shape \[10, 4\]; must be \[\*, 3\]"),
    ("weight", torch.zeros(0, 3), "weight has no rows"),
    ("targets", torch.zeros(5, dtype=torch.int64), r"shape \[5\]; must be \[4\] or \[4, K\]"),
    ("targets", torch.zeros(4, 1, 1, dtype=torch.int64), r"must be \[4\] or \[4, K\]"),
    ("targets", torch.zeros(4, dtype=torch.int32), "targets are torch.int32; must be torch.int64"),
    ("bias", torch.zeros(9), r"bias has shape \[9\]; must be \[10\]"),
    ("bias", torch.zeros(10, requires_grad=True), "frozen bias"),
    ("lora", (torch.zeros(2, 4), torch.zeros(10, 2), 1.0), r"lora A has shape \[2, 4\]"),
    ("lora", (torch.zeros(2, 3), torch.zeros(10, 3), 1.0), r"lora B has shape \[10, 3\]"),
    ("lora", (torch.zeros(2, 3), torch.zeros(10, 2), float("nan")), "lora scale is nan"),
    ("temperature", torch.ones(3), r"temperature has shape \[3\]; must be \[4\]"),
    ("softcap", 0.0, "softcap is 0.0; must be finite and positive"),
    ("temperature", 0.0, "temperature is 0.0; must be finite and positive"),
    ("temperature", float("inf"), "temperature is inf; must be finite and positive"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_arguments_are_refused_by_name(name: str, value: object, message: str) -> None:
    arguments: dict[str, object] = {
        "hidden": torch.zeros(4, 3),
        "weight": torch.zeros(10, 3),
        "targets": torch.zeros(4, dtype=torch.int64),
    }
    linear_logprob(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        linear_logprob(**(arguments | {name: value}))  # type: ignore[arg-type]


def test_a_negative_budget_is_refused() -> None:
    case = make_case(2, 3, 4)
    with pytest.raises(ValueError, match="keep_bytes is -1; must not be negative"):
        case.run(keep_bytes=-1)
