"""The way of plain PyTorch, which the environment may ask for in place of the kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_cases import loss_case
from torch import Tensor

from tinkergate_kernels import (
    Merged,
    linear_logprob,
    linear_partials,
    linear_scores,
    merge,
    selective_logprob,
    selective_scores,
)
from tinkergate_kernels.bench import __main__ as bench
from tinkergate_kernels.cpu import linear as cpu_linear
from tinkergate_kernels.cpu import linear_pass as cpu_linear_pass
from tinkergate_kernels.cpu import selective as cpu_selective
from tinkergate_kernels.dispatch import VARIABLE, way_on
from tinkergate_kernels.losses import LOSSES, evaluate, loss
from tinkergate_kernels.selftest import __main__ as selftest

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments(n: int = 150, vocab: int = 1700, dtype: torch.dtype = torch.float32) -> Any:
    """Of `linear_logprob`: two targets a row, some of them no tokens, and all the options."""
    targets = torch.randint(vocab, (n, 2), generator=torch.Generator().manual_seed(7))
    targets[1], targets[2, 0] = -100, vocab
    return {
        "hidden": (normal(n, 16, seed=1) * 4).to(dtype),
        "weight": (normal(vocab, 16, seed=2) / 4).to(dtype),
        "targets": targets,
        "bias": normal(vocab, seed=3),
        "lora": (normal(3, 16, seed=4), normal(vocab, 3, seed=5) * 0.1, 1.5),
        "temperature": torch.linspace(0.7, 1.4, n),
        "softcap": 20.0,
    }


def gradients(given: Any) -> list[Tensor]:
    """Logprobs, and the gradients of hidden, weight, A and B."""
    a, b, scale = given["lora"]
    leaves = [x.clone().requires_grad_() for x in (given["hidden"], given["weight"], a, b)]
    hidden, weight, a, b = leaves
    own = given | {"hidden": hidden, "weight": weight, "lora": (a, b, scale)}
    logprobs = linear_logprob(**own)
    made = torch.autograd.grad(logprobs, leaves, normal(*logprobs.shape, seed=6))
    return [logprobs.detach(), *made]


def linear(dtype: torch.dtype) -> list[Tensor]:
    given = arguments(dtype=dtype)
    scores = linear_scores(**given, entropy=True, topk=5)
    assert scores.entropy is not None
    parts: Merged = merge(linear_partials(**given, split=300))
    return [*gradients(given), *scores[:3], scores.topk_ids, scores.topk_logprobs, *parts]


def selective(dtype: torch.dtype) -> list[Tensor]:
    given = arguments()
    logits = (normal(150, 1700, seed=8) * 9).to(dtype).requires_grad_()
    options = {key: given[key] for key in ("bias", "temperature", "softcap")}
    scores = selective_scores(logits, given["targets"], entropy=True, topk=5, **options)
    values = [scores.logprob, scores.logsumexp, scores.entropy]
    sent = [normal(*value.shape, seed=9) for value in values if value is not None]
    (made,) = torch.autograd.grad(values, logits, sent)
    told = [x.detach() for x in scores if x is not None]
    return [made, selective_logprob(logits, given["targets"], **options).detach(), *told]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Asks for plain PyTorch when it is called; the kernels are not to be touched from then on."""

    def ask() -> None:
        monkeypatch.setenv(VARIABLE, "plain")
        for room in (cpu_linear, cpu_linear_pass, cpu_selective):
            for name in ("softmax", "parts_of", "CpuPass", "partials", "forward", "backward"):
                if hasattr(room, name):
                    monkeypatch.setattr(room, name, None)

    return ask


@pytest.mark.parametrize("function", [linear, selective])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_answers_are_those_of_the_kernels(
    function: Callable[[torch.dtype], list[Tensor]], dtype: torch.dtype, plain: Callable[[], None]
) -> None:
    wanted = function(dtype)
    plain()
    found = function(dtype)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if ours.dtype == torch.int64:
            assert torch.equal(ours, theirs)
            continue
        # Two roundings of half precision may lie a step apart.
        step = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[ours.dtype]
        largest = max(1.0, float(theirs.abs().max()))
        assert float((ours.double() - theirs).abs().max()) <= step * largest


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same_to_the_bit_on_a_cpu(name: str, plain: Callable[[], None]) -> None:
    case = loss_case(name, (5, 9, 0, 40))
    given = (name, case.logprobs, case.inputs, case.offsets, case.config)
    wanted = evaluate(*given)
    plain()
    found = evaluate(*given)
    for ours, theirs in zip(found[:3], wanted[:3], strict=True):
        assert torch.equal(ours, theirs)
    assert found.metrics == wanted.metrics
    assert torch.equal(loss(*given), wanted.loss.float())


def everything() -> list[Tensor]:
    case = loss_case("grpo", (5, 9, 0, 40))
    dpo = loss_case("dpo", (5, 9, 0, 40))
    found = [
        result
        for each in (case, dpo)
        for result in evaluate(each.name, each.logprobs, each.inputs, each.offsets)[:3]
    ]
    return [*linear(torch.float32), *selective(torch.bfloat16), *found]


def test_nothing_is_made_on_another_device(
    plain: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain()
    wanted = everything()
    # What the tests make stays where it is; what is made without a device has no numbers.
    monkeypatch.setattr(torch, "randn", _on_the_cpu(torch.randn))
    monkeypatch.setattr(torch, "randint", _on_the_cpu(torch.randint))
    monkeypatch.setattr(torch, "linspace", _on_the_cpu(torch.linspace))
    monkeypatch.setattr(torch, "tensor", _on_the_cpu(torch.tensor))
    with torch.device("meta"):
        assert torch.ones(1).device.type == "meta"
        found = everything()
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.device == CPU
        assert torch.equal(ours, theirs)


def _on_the_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given, **options: make(*given, **({"device": CPU} | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_batch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "plain")
    given = arguments(500, dtype=dtype)
    whole = linear_scores(**given, entropy=True, topk=3)
    for rows in (slice(3, 4), slice(3, 10), slice(90, 500), slice(499, 500)):
        own = given | {name: given[name][rows] for name in ("hidden", "targets", "temperature")}
        for part, all_rows in zip(linear_scores(**own, entropy=True, topk=3), whole, strict=True):
            assert part is not None
            assert all_rows is not None
            assert torch.equal(part, all_rows[rows])


def test_the_environment_is_asked_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert (way_on(CPU), way_on(GPU)) == ("cpu", "gpu")
    for nothing in ("", "fused"):
        monkeypatch.setenv(VARIABLE, nothing)
        assert (way_on(CPU), way_on(GPU)) == ("cpu", "gpu")
    monkeypatch.setenv(VARIABLE, "plain")
    assert (way_on(CPU), way_on(GPU)) == ("plain", "plain")
    monkeypatch.setenv(VARIABLE, "Plain")
    with pytest.raises(ValueError, match="TINKERGATE_KERNELS is 'Plain'; must be fused or plain"):
        linear_logprob(**arguments())
    with pytest.raises(ValueError, match="must be fused or plain"):
        selective_logprob(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be fused or plain"):
        evaluate("cross_entropy", torch.zeros(2), {}, torch.tensor([0, 2]))


def test_a_backward_goes_the_way_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments()
    _, wanted, *_ = gradients(given)
    hidden = given["hidden"].clone().requires_grad_()
    logprobs = linear_logprob(**given | {"hidden": hidden})
    monkeypatch.setenv(VARIABLE, "plain")
    (found,) = torch.autograd.grad(logprobs, hidden, normal(*logprobs.shape, seed=6))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("room", ["linear", "selective", "losses"])
def test_the_selftest_checks_this_way_too(
    room: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "plain")
    status = selftest.main(["--device", "cpu", "--only", room])
    out = capsys.readouterr().out
    assert "on plain PyTorch, cpu" in out
    assert status == 0, "\n".join(line for line in out.splitlines() if line.startswith("FAIL"))


@pytest.mark.parametrize("command", [selftest.main, bench.main])
def test_the_commands_refuse_a_way_that_there_is_not(
    command: Callable[[list[str]], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, "slow")
    with pytest.raises(SystemExit) as stopped:
        command(["--device", "cpu"])
    assert stopped.value.code == 2
    assert "TINKERGATE_KERNELS is 'slow'; must be fused or plain" in capsys.readouterr().err


def test_triton_is_not_even_loaded(
    plain: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain()
    for name in [
        name for name in sys.modules if name.startswith(("triton", "tinkergate_kernels.gpu"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)  # an import of it fails
    everything()
