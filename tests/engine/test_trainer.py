"""Training against an independent loop in plain PyTorch and PEFT, and the rules around it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tinkergate.engine import trainer as trainer_module
from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel
from tinkergate.engine.losses import Example
from tinkergate.engine.optimizer import AdamSettings
from tinkergate.engine.trainer import ForwardBackwardResult, Trainer
from tinkergate.errors import ErrorReason, GatewayError

ADAM = AdamSettings(learning_rate=1e-3, weight_decay=0.01)
SPEC = LoraSpec(rank=4, alpha=8, seed=3)


@pytest.fixture(scope="module")
def base(micro_model_dir: Path) -> BaseModel:
    return BaseModel.load(micro_model_dir)


@pytest.fixture(scope="module")
def adapters(base: BaseModel) -> Adapters:
    return Adapters(base)


@pytest.fixture
def trainer(base: BaseModel, adapters: Adapters) -> Iterator[Trainer]:
    adapters.create("a", SPEC)
    yield Trainer(base, adapters, "a", tokens_per_micro_batch=48)
    adapters.delete("a")


def example(length: int, seed: int, columns: int | None = None, vocab: int = 512) -> Example:
    """Random tokens, targets and weights of either sign."""
    rng = np.random.default_rng(seed)
    shape = (length,) if columns is None else (length, columns)
    return Example(
        rng.integers(vocab, size=length),
        {
            "target_tokens": rng.integers(vocab, size=shape),
            "weights": rng.normal(size=shape).astype(np.float32),
        },
    )


UNEVEN = [example(length, seed) for seed, length in enumerate((7, 40, 1, 60, 12, 12, 33, 2))]


def run(
    trainer: Trainer, data: Sequence[Example], *, backward: bool = True
) -> ForwardBackwardResult:
    work = trainer.forward_backward(data, "cross_entropy", {}, backward=backward)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: ForwardBackwardResult = stop.value
            return result


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return trainer.state().weights


def gradient(trainer: Trainer) -> Tensor:
    assert trainer._gradients.parts is not None
    return torch.cat([part.flatten() for part in trainer._gradients.parts])


class PlainLoop:
    """An independent trainer: transformers, PEFT, torch.optim.AdamW, one example at a time."""

    def __init__(self, folder: Path, spec: LoraSpec, initial: dict[str, Tensor]) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        modules = {key.split(".")[-3] for key in initial}
        config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=sorted(modules))
        self.model = get_peft_model(model, config)
        self.parameters = {
            name.replace(".default", ""): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        assert self.parameters.keys() == initial.keys()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(initial[name])
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=ADAM.learning_rate,
            betas=(ADAM.beta1, ADAM.beta2),
            eps=ADAM.eps,
            weight_decay=ADAM.weight_decay,
        )

    def step(self, data: Sequence[Example]) -> float:
        total = 0.0
        for one in data:
            logprobs = self.model(torch.from_numpy(one.tokens)[None]).logits[0].log_softmax(-1)
            targets = torch.from_numpy(one.inputs["target_tokens"])
            columns = targets if targets.ndim == 2 else targets[:, None]
            picked = logprobs.gather(1, columns).view(targets.shape)
            loss = -(torch.from_numpy(one.inputs["weights"]) * picked).sum()
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


plain_peft = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing", "ignore:.*tie_word_embeddings"
)


@torch.no_grad()
def plain_logprobs(folder: Path, one: Example) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits: Tensor = model(torch.from_numpy(one.tokens)[None]).logits[0]
    targets = torch.from_numpy(one.inputs["target_tokens"])
    columns = targets if targets.ndim == 2 else targets[:, None]
    return logits.log_softmax(-1).gather(1, columns).view(targets.shape)


@pytest.mark.parametrize("columns", [None, 1, 3])
def test_logprobs_and_loss_are_those_of_a_plain_forward(
    trainer: Trainer, micro_model_dir: Path, columns: int | None
) -> None:
    data = [example(length, length, columns) for length in (5, 50, 20, 100)]
    expected = [plain_logprobs(micro_model_dir, one).numpy() for one in data]
    result = run(trainer, data, backward=False)
    for got, wanted in zip(result.logprobs, expected, strict=True):
        assert got.dtype == np.float32
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() < 1e-4
    loss = -sum((w * one.inputs["weights"]).sum() for w, one in zip(expected, data, strict=True))
    assert result.metrics == {"loss:sum": pytest.approx(loss, rel=1e-4)}
    assert trainer._gradients.parts is None
    again = run(trainer, data, backward=True)
    for one, other in zip(result.logprobs, again.logprobs, strict=True):
        assert np.array_equal(one, other)
    assert again.metrics == result.metrics


@plain_peft
@pytest.mark.parametrize("columns", [None, 3])
def test_five_steps_equal_a_plain_loop(
    trainer: Trainer, micro_model_dir: Path, columns: int | None
) -> None:
    data = [example(length, length, columns) for length in (7, 40, 1, 60, 12)]
    plain = PlainLoop(micro_model_dir, SPEC, weights(trainer))
    for _ in range(5):
        expected = plain.step(data)
        assert run(trainer, data).metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)
        trainer.optim_step(ADAM)
    assert trainer.optimizer_steps == 5
    for name, weight in weights(trainer).items():
        theirs = plain.parameters[name].detach()
        assert (weight - theirs).norm() < 1e-4 * theirs.norm(), name


@plain_peft
@pytest.mark.slow
def test_five_steps_of_the_default_model_equal_a_plain_loop(default_model_dir: Path) -> None:
    base = BaseModel.load(default_model_dir)
    adapters = Adapters(base)
    adapters.create("a", SPEC)
    trainer = Trainer(base, adapters, "a")
    texts = ["To be, or not to be, that is the question:", "2 + 2 = 4"]
    data = []
    for text in texts:
        ids = np.array(base.tokenizer(text).input_ids)
        ones = np.ones(len(ids) - 1, np.float32)
        data.append(Example(ids[:-1], {"target_tokens": ids[1:], "weights": ones}))
    plain = PlainLoop(default_model_dir, SPEC, weights(trainer))
    losses = []
    for _ in range(5):
        expected = plain.step(data)
        losses.append(run(trainer, data).metrics["loss:sum"])
        assert losses[-1] == pytest.approx(expected, rel=1e-4)
        trainer.optim_step(ADAM)
    assert losses == sorted(losses, reverse=True)


def test_two_calls_equal_one_combined(
    base: BaseModel, adapters: Adapters, trainer: Trainer
) -> None:
    adapters.create("b", SPEC)
    combined = Trainer(base, adapters, "b", tokens_per_micro_batch=1000)
    run(trainer, UNEVEN[:3])
    run(trainer, UNEVEN[3:])
    run(combined, UNEVEN)
    one, other = gradient(trainer), gradient(combined)
    assert (one - other).norm() < 1e-6 * other.norm()
    assert (one - other).abs().max() < 1e-6 * other.abs().max()
    adapters.delete("b")


def test_weights_are_one_where_they_are_left_out(trainer: Trainer) -> None:
    ones = [
        Example(e.tokens, e.inputs | {"weights": np.ones(len(e.tokens), np.float32)})
        for e in UNEVEN
    ]
    without = [Example(e.tokens, {"target_tokens": e.inputs["target_tokens"]}) for e in UNEVEN]
    expected, first = run(trainer, ones), gradient(trainer)
    trainer.load_state(weights(trainer), None)
    # Some with, some without, in one micro-batch.
    assert run(trainer, [*ones[:2], *without[2:]]).metrics == expected.metrics
    assert torch.equal(gradient(trainer), first)


def test_targets_of_several_widths_in_one_call(trainer: Trainer) -> None:
    data = [example(5, 1), example(5, 2, 3), example(5, 3, 1), example(5, 4)]
    result = run(trainer, data)
    assert [lp.shape for lp in result.logprobs] == [(5,), (5, 3), (5, 1), (5,)]


def test_no_examples(trainer: Trainer) -> None:
    result = run(trainer, [])
    assert result.logprobs == []
    assert result.metrics == {"loss:sum": 0.0}


@pytest.mark.parametrize("part", ["train_attn", "train_mlp", "train_unembed"])
def test_only_the_chosen_part_is_trained(base: BaseModel, adapters: Adapters, part: str) -> None:
    flags = {flag: flag == part for flag in ("train_attn", "train_mlp", "train_unembed")}
    adapters.create("a", LoraSpec(rank=4, alpha=8, **flags))
    frozen = {name: p.clone() for name, p in base.hf.named_parameters() if "lora" not in name}
    trainer = Trainer(base, adapters, "a")
    before = weights(trainer)
    for _ in range(2):
        run(trainer, UNEVEN)
        trainer.optim_step(ADAM)
    after = weights(trainer)
    blocks = {"train_attn": ".self_attn.", "train_mlp": ".mlp.", "train_unembed": "lm_head"}
    assert all(blocks[part] in key for key in after)
    assert all(not torch.equal(before[key], after[key]) for key in after)
    for name, parameter in base.hf.named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, frozen[name])
    adapters.delete("a")


def test_interleaved_equals_alone(base: BaseModel, adapters: Adapters) -> None:
    def alone(name: str, seed: int) -> tuple[list[ForwardBackwardResult], dict[str, Tensor]]:
        adapters.create(name, LoraSpec(rank=4, alpha=8, seed=seed))
        trainer = Trainer(base, adapters, name, tokens_per_micro_batch=48)
        results = []
        for _ in range(3):
            results.append(run(trainer, UNEVEN))
            trainer.optim_step(ADAM)
        state = weights(trainer)
        adapters.delete(name)
        return results, state

    expected = {name: alone(name, seed) for seed, name in enumerate("ab")}

    trainers = {}
    for seed, name in enumerate("ab"):
        adapters.create(name, LoraSpec(rank=4, alpha=8, seed=seed))
        trainers[name] = Trainer(base, adapters, name, tokens_per_micro_batch=48)
    results: dict[str, list[ForwardBackwardResult]] = {"a": [], "b": []}

    def steps(name: str) -> Iterator[None]:
        for _ in range(3):
            work = trainers[name].forward_backward(UNEVEN, "cross_entropy", {}, backward=True)
            results[name].append((yield from work))
            yield
            trainers[name].optim_step(ADAM)
            yield

    running = [steps("a"), steps("b")]
    while running:
        for work in list(running):
            if next(work, StopIteration) is StopIteration:
                running.remove(work)
    for name, (alone_results, alone_weights) in expected.items():
        for mine, theirs in zip(results[name], alone_results, strict=True):
            assert mine.metrics == theirs.metrics
            assert all(map(np.array_equal, mine.logprobs, theirs.logprobs))
        together = weights(trainers[name])
        assert all(torch.equal(together[key], alone_weights[key]) for key in together)
        adapters.delete(name)


def test_a_failure_leaves_no_trace(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    run(trainer, UNEVEN[:2])
    before, state = gradient(trainer).clone(), weights(trainer)
    calls = 0
    kernel = trainer_module.linear_logprob

    def second_fails(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")
        return kernel(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "linear_logprob", second_fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(trainer, UNEVEN)
    assert calls == 2
    assert torch.equal(gradient(trainer), before)
    assert all(torch.equal(w, state[key]) for key, w in weights(trainer).items())

    work = trainer.forward_backward(UNEVEN, "cross_entropy", {}, backward=True)
    next(work)
    next(work)
    work.close()
    assert torch.equal(gradient(trainer), before)


def test_what_failed_counts_for_no_tokens(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def per_token(data: Sequence[Example]) -> Generator[None, None, ForwardBackwardResult]:
        return trainer.forward_backward(data, "cross_entropy", {}, backward=True, per_token=True)

    list(per_token(UNEVEN[:2]))
    work = per_token(UNEVEN)
    next(work)
    next(work)
    work.close()
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "linear_logprob", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(per_token(UNEVEN))
    metrics = trainer.optim_step(ADAM)
    assert metrics["normalization_tokens:sum"] == 7 + 40
    # A gradient that is not finite is cleared with its kind.
    bad = example(5, 0)
    bad.inputs["weights"][2] = np.inf
    list(per_token([bad]))
    with pytest.raises(GatewayError, match="no step was taken"):
        trainer.optim_step(ADAM)
    run(trainer, UNEVEN)
    assert "normalization_tokens:sum" not in trainer.optim_step(ADAM)


def test_bad_input_is_refused_before_any_work(trainer: Trainer) -> None:
    with pytest.raises(GatewayError, match="loss_fn"):
        trainer.forward_backward(UNEVEN, "stable_reinforce", {}, backward=True)


def test_gradients_are_cleared_by_a_step(trainer: Trainer) -> None:
    run(trainer, UNEVEN)
    norm = gradient(trainer).norm().item()
    assert trainer.optim_step(ADAM) == {"grad_norm:mean": pytest.approx(norm)}
    # Without gradients the gradient is zero: moments decay, and the weights still move by them.
    before, first = weights(trainer), trainer.state().optimizer
    assert trainer.optim_step(ADAM) == {"grad_norm:mean": 0.0}
    second = trainer.state().optimizer
    assert second.step == 2
    for key, moment in second.exp_avg.items():
        assert torch.allclose(moment, ADAM.beta1 * first.exp_avg[key])
    assert any(not torch.equal(w, before[key]) for key, w in weights(trainer).items())


def test_numbers_that_are_not_finite_are_told_and_not_trained_on(trainer: Trainer) -> None:
    bad = example(5, 0)
    bad.inputs["weights"][2] = np.inf
    before = weights(trainer)
    assert not np.isfinite(run(trainer, [bad]).metrics["loss:sum"])
    with pytest.raises(GatewayError, match="no step was taken"):
        trainer.optim_step(ADAM)
    assert all(torch.equal(w, before[key]) for key, w in weights(trainer).items())
    assert trainer.optimizer_steps == 0
    # The model goes on.
    assert np.isfinite(run(trainer, UNEVEN).metrics["loss:sum"])
    assert np.isfinite(trainer.optim_step(ADAM)["grad_norm:mean"])


def test_resumed_equals_uninterrupted(
    base: BaseModel, adapters: Adapters, trainer: Trainer
) -> None:
    for _ in range(2):
        run(trainer, UNEVEN)
        trainer.optim_step(ADAM)
    saved = trainer.state()
    ends = []
    adapters.create("b", LoraSpec(rank=4, alpha=8, seed=99))
    resumed = Trainer(base, adapters, "b", tokens_per_micro_batch=48)
    run(resumed, UNEVEN)
    resumed.load_state(saved.weights, saved.optimizer)
    assert resumed.optimizer_steps == 2
    adapters.create("c", LoraSpec(rank=4, alpha=8, seed=99))
    weights_only = Trainer(base, adapters, "c", tokens_per_micro_batch=48)
    weights_only.load_state(saved.weights, None)
    assert weights_only.optimizer_steps == 0
    for one in (trainer, resumed, weights_only):
        for _ in range(2):
            run(one, UNEVEN)
            one.optim_step(ADAM)
        ends.append(weights(one))
    uninterrupted, exact, fresh = ends
    assert all(torch.equal(uninterrupted[key], exact[key]) for key in uninterrupted)
    assert any(not torch.equal(uninterrupted[key], fresh[key]) for key in uninterrupted)
    adapters.delete("b")
    adapters.delete("c")


def test_a_state_that_does_not_fit_changes_nothing(
    base: BaseModel, adapters: Adapters, trainer: Trainer
) -> None:
    others = {
        "rank": LoraSpec(rank=3, alpha=8),
        "parts": LoraSpec(rank=4, alpha=8, train_mlp=False),
    }
    run(trainer, UNEVEN)
    trainer.optim_step(ADAM)
    run(trainer, UNEVEN)
    before, held = trainer.state(), gradient(trainer).clone()
    for name, spec in others.items():
        adapters.create(name, spec)
        state = Trainer(base, adapters, name).state()
        adapters.delete(name)
        for attempt in ((state.weights, None), (before.weights, state.optimizer)):
            with pytest.raises(GatewayError) as caught:
                trainer.load_state(*attempt)
            assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH
    after = trainer.state()
    assert all(torch.equal(after.weights[key], before.weights[key]) for key in before.weights)
    assert after.optimizer.step == 1
    assert torch.equal(gradient(trainer), held)
    trainer.load_state(before.weights, before.optimizer)
    assert trainer._gradients.parts is None
