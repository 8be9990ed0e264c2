"""The reverse KL divergence against float64 and autograd: of rows alone, and of an adapter through
a plain model by transformers and PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tinkergate.engine import reverse_kl
from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel, LoraFactors, Unembedding
from tinkergate.engine.distillation import Comparison
from tinkergate.engine.reverse_kl import Rows, weighted_divergence
from tinkergate.engine.trainer import ReverseKlResult, Trainer
from tinkergate.errors import GatewayError

STUDENT = LoraSpec(rank=4, alpha=8, seed=3)
TEACHER = LoraSpec(rank=2, alpha=3, seed=5)


def kl(logits: Tensor, other: Tensor, temperature: float) -> Tensor:
    """KL(p || q) of each row, as its definition says."""
    logp = (logits / temperature).log_softmax(-1)
    return (logp.exp() * (logp - (other / temperature).log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("tile", [1, 200, 1 << 22])
def test_rows_alone(
    monkeypatch: pytest.MonkeyPatch, temperature: float, lora: bool, tile: int
) -> None:
    monkeypatch.setattr(reverse_kl, "TILE_ELEMENTS", tile)
    numbers = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=numbers)  # noqa: E731
    weight, bias, hidden, other = draw(50, 8), draw(50), draw(7, 8), draw(7, 8)
    factors = LoraFactors(draw(3, 8), draw(50, 3), 0.7) if lora else None
    weights = draw(7)
    found = weighted_divergence(
        Rows(hidden, Unembedding(weight, bias, factors)),
        Rows(other, Unembedding(weight, bias, None)),
        weights,
        temperature,
    )
    leaves = [hidden.double().requires_grad_()]
    logits = leaves[0] @ weight.double().T + bias.double()
    if factors is not None:
        leaves += [factors.a.double().requires_grad_(), factors.b.double().requires_grad_()]
        logits = logits + 0.7 * (leaves[0] @ leaves[1].T) @ leaves[2].T
    rows = kl(logits, other.double() @ weight.double().T + bias.double(), temperature)
    wanted = torch.autograd.grad((weights.double() * rows).sum(), leaves)
    assert torch.allclose(found.divergence, rows.detach(), rtol=1e-5, atol=1e-6)
    given = [found.hidden, found.a, found.b]
    assert [part is not None for part in given] == [True, lora, lora]
    for part, right in zip(given, wanted, strict=False):
        assert part is not None
        assert float((part.double() - right).norm()) < 1e-4 * float(right.norm())


def test_logits_are_there_for_a_tile_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    heights: list[int] = []
    product = reverse_kl.float32_logits

    def watched(hidden: Tensor, unembedding: Unembedding) -> Tensor:
        heights.append(len(hidden))
        return product(hidden, unembedding)

    monkeypatch.setattr(reverse_kl, "float32_logits", watched)
    monkeypatch.setattr(reverse_kl, "TILE_ELEMENTS", 50 * 4 + 3)
    rows = Rows(torch.randn(11, 8), Unembedding(torch.randn(50, 8), None, None))
    weighted_divergence(rows, rows, torch.ones(11), 1.0)
    assert heights == [4, 4, 4, 4, 3, 3]


def test_a_bfloat16_unembedding_is_read_as_float32() -> None:
    numbers = torch.Generator().manual_seed(1)
    weight = torch.randn(9000, 8, generator=numbers).bfloat16()  # more than one piece
    hidden, other = torch.randn(2, 3, 8, generator=numbers).bfloat16()
    weights = torch.ones(3)
    found = weighted_divergence(
        Rows(hidden, Unembedding(weight, None, None)),
        Rows(other, Unembedding(weight, None, None)),
        weights,
        1.0,
    )
    leaf = hidden.double().requires_grad_()
    rows = kl(leaf @ weight.double().T, other.double() @ weight.double().T, 1.0)
    [wanted] = torch.autograd.grad(rows.sum(), leaf)
    assert torch.allclose(found.divergence, rows.detach(), rtol=1e-5, atol=1e-5)
    assert float((found.hidden.double() - wanted).norm()) < 1e-5 * float(wanted.norm())


def text(student: int, reference: int, same: int, seed: int) -> Comparison:
    """Two prompts of their own, the same last tokens, and weights of either sign, some 0."""
    numbers = np.random.default_rng(seed)
    shared = numbers.integers(512, size=same)
    weights = np.zeros(student, np.float32)
    weights[student - same - 1 :] = numbers.normal(size=same + 1)
    weights[student - same :: 3] = 0
    return Comparison(
        np.concatenate([numbers.integers(512, size=student - same), shared]),
        np.concatenate([numbers.integers(512, size=reference - same), shared]),
        weights,
    )


TEXTS = [text(9, 20, 5, 0), text(30, 12, 11, 1), text(6, 6, 2, 2), text(4, 3, 1, 3)]


@pytest.fixture(scope="module")
def adapters(micro_model_dir: Path) -> Adapters:
    return Adapters(BaseModel.load(micro_model_dir))


def shifted(adapters: Adapters, name: str) -> dict[str, Tensor]:
    """Move an adapter's weights away from where they begin, B = 0. Answers them."""
    numbers = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for _, weight in adapters.parameters(name):
            weight += 0.05 * torch.randn(weight.shape, generator=numbers)
    return {key: weight.detach().clone() for key, weight in adapters.parameters(name)}


@pytest.fixture(params=[{}, {"train_unembed": False}, {"train_mlp": False, "train_attn": False}])
def spec(request: Any) -> LoraSpec:
    return LoraSpec(**vars(STUDENT) | request.param)


@pytest.fixture
def trainer(adapters: Adapters, spec: LoraSpec) -> Iterator[Trainer]:
    adapters.create("student", spec)
    adapters.create("teacher-", TEACHER)
    shifted(adapters, "student")
    shifted(adapters, "teacher-")
    yield Trainer(adapters._base, adapters, "student", tokens_per_micro_batch=48)
    adapters.delete("student")
    adapters.delete("teacher-")


def run(
    trainer: Trainer, texts: Sequence[Comparison], reference: str | None, temperature: float = 1.0
) -> ReverseKlResult:
    work = trainer.reverse_kl(texts, reference, temperature)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: ReverseKlResult = stop.value
            return result


def plain(folder: Path, spec: LoraSpec, weights: dict[str, Tensor]) -> tuple[Any, list[Tensor]]:
    """The same adapter by transformers and PEFT in float64, and its parameters in order."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    modules = sorted({key.split(".")[-3] for key in weights})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=modules)
        peft = get_peft_model(model, config)
    parameters = {
        key.replace(".default", ""): parameter
        for key, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    for key, parameter in parameters.items():
        parameter.data = weights[key].double()
    return peft, [parameters[key] for key in weights]


@pytest.mark.parametrize("reference", ["teacher-", None])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_gradient_is_that_of_the_formula(
    micro_model_dir: Path,
    adapters: Adapters,
    trainer: Trainer,
    spec: LoraSpec,
    reference: str | None,
    temperature: float,
) -> None:
    ours = {key: weight.detach() for key, weight in adapters.parameters("student")}
    student, parameters = plain(micro_model_dir, spec, ours)
    if reference is None:
        teacher = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float64)
    else:
        theirs = {key: weight.detach() for key, weight in adapters.parameters(reference)}
        teacher, _ = plain(micro_model_dir, TEACHER, theirs)
    losses = []
    for one in TEXTS:
        logits = student(torch.from_numpy(one.tokens)[None]).logits[0]
        other = teacher(torch.from_numpy(one.reference_tokens)[None]).logits[0].detach()
        rows = [
            one.weights[i] * kl(logits[i], other[len(other) - len(logits) + i], temperature)
            for i in np.flatnonzero(one.weights)
        ]
        losses.append(torch.stack(rows).sum())
    total = torch.stack(losses).sum()
    wanted = torch.cat([part.flatten() for part in torch.autograd.grad(total, parameters)])

    before = {key: weight.detach().clone() for key, weight in adapters.parameters("teacher-")}
    found = run(trainer, TEXTS, reference, temperature)
    assert found.losses == pytest.approx([loss.item() for loss in losses], rel=1e-4, abs=1e-5)
    assert found.metrics["loss:sum"] == pytest.approx(total.item(), rel=1e-4, abs=1e-5)
    assert found.metrics["active_tokens:sum"] == sum(np.count_nonzero(t.weights) for t in TEXTS)
    assert trainer._gradients.parts is not None
    given = torch.cat([part.flatten() for part in trainer._gradients.parts]).double()
    assert float(wanted.norm()) > 1e-3
    assert float((given - wanted).norm()) < 1e-4 * float(wanted.norm())
    for key, weight in adapters.parameters("teacher-"):
        assert torch.equal(weight, before[key])


def test_micro_batches_add_up(adapters: Adapters, trainer: Trainer) -> None:
    whole = Trainer(adapters._base, adapters, "student", tokens_per_micro_batch=4096)
    one, many = run(whole, TEXTS, "teacher-"), run(trainer, TEXTS, "teacher-")
    assert many.losses == pytest.approx(one.losses, rel=1e-5, abs=1e-6)
    assert many.metrics == pytest.approx(one.metrics, rel=1e-5, abs=1e-6)
    assert trainer._gradients.parts is not None
    assert whole._gradients.parts is not None
    for part, other in zip(trainer._gradients.parts, whole._gradients.parts, strict=True):
        assert torch.allclose(part, other, rtol=1e-4, atol=1e-6)


def test_what_is_the_same_does_not_diverge(adapters: Adapters, trainer: Trainer) -> None:
    same = [Comparison(t.tokens, t.tokens, t.weights) for t in TEXTS]
    found = run(trainer, same, "student")
    assert found.losses == pytest.approx([0.0] * len(same), abs=1e-6)
    assert trainer._gradients.parts is not None
    assert max(float(part.abs().max()) for part in trainer._gradients.parts) < 1e-4


def test_texts_without_weight_change_nothing(trainer: Trainer) -> None:
    idle = [Comparison(t.tokens, t.tokens[:1], np.zeros(len(t.tokens), np.float32)) for t in TEXTS]
    found = run(trainer, idle, None)
    assert found.losses == [0.0] * len(idle)
    assert found.metrics == {"loss:sum": 0, "active_tokens:sum": 0, "kl:sum": 0, "kl:max": 0}
    assert trainer._gradients.parts is None


def test_a_call_that_is_closed_leaves_nothing(trainer: Trainer) -> None:
    work = trainer.reverse_kl(TEXTS, None, 1.0)
    next(work)
    work.close()
    assert trainer._gradients.parts is None


@pytest.mark.parametrize(
    ("tokens", "reference", "weights", "temperature", "told"),
    [
        ([1, 2, 3], [2, 3], [1.0, 1.0, 1.0], 1.0, r"data\[0\].reference_input: has 2 tokens"),
        ([1, 2, 3], [9, 2, 4], [1.0, 1.0, 1.0], 1.0, r"does not end with the 2 tokens"),
        ([1, 2, 3], [1, 2, 3], [1.0, 1.0], 1.0, r"data\[0\].weights: has shape \[2\]"),
        ([], [1], [], 1.0, r"data\[0\].student_input: has no tokens"),
        ([1], [1], [1.0], 0.0, "temperature: is 0.0"),
        ([1], [1], [1.0], float("inf"), "temperature: is inf"),
    ],
)
def test_what_breaks_the_rules_is_refused_before_any_work(
    trainer: Trainer,
    tokens: list[int],
    reference: list[int],
    weights: list[float],
    temperature: float,
    told: str,
) -> None:
    one = Comparison(
        np.array(tokens, np.int64), np.array(reference, np.int64), np.array(weights, np.float32)
    )
    with pytest.raises(GatewayError, match=told):
        trainer.reverse_kl([one], None, temperature)
