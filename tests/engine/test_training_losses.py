"""Every loss of the registry in training: gradients of the adapter against autograd through a plain
model in float64, and through its formula."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from loss_cases import OTHER_SETTINGS
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel
from tinkergate.engine.losses import LOSSES, Example
from tinkergate.engine.trainer import ForwardBackwardResult, Trainer
from tinkergate.errors import GatewayError
from tinkergate_kernels.reference.losses import losses

SPEC = LoraSpec(rank=4, alpha=8, seed=3)
LENGTHS = (7, 40, 1, 30, 12, 12, 33, 2)
_TOKENS = np.random.default_rng(4)
PLAIN = [
    Example(_TOKENS.integers(512, size=n), {"target_tokens": _TOKENS.integers(512, size=n)})
    for n in LENGTHS
]
"""Examples without inputs of a loss."""
ALL = pytest.mark.parametrize("name", list(LOSSES))


@pytest.fixture(scope="module")
def adapters(micro_model_dir: Path) -> Adapters:
    return Adapters(BaseModel.load(micro_model_dir))


@pytest.fixture(scope="module")
def base(adapters: Adapters) -> BaseModel:
    return adapters._base


@pytest.fixture(scope="module")
def start(base: BaseModel, adapters: Adapters) -> dict[str, Tensor]:
    """Weights away from zero, where B is at first, and with it the gradient of A."""
    generator = torch.Generator().manual_seed(1)
    adapters.create("start", SPEC)
    fresh = Trainer(base, adapters, "start").state().weights
    adapters.delete("start")
    return {
        key: weight + 0.05 * torch.randn(weight.shape, generator=generator)
        for key, weight in fresh.items()
    }


@pytest.fixture
def trainer(base: BaseModel, adapters: Adapters, start: dict[str, Tensor]) -> Iterator[Trainer]:
    adapters.create("a", SPEC)
    trainer = Trainer(base, adapters, "a", tokens_per_micro_batch=48)
    trainer.load_state(start, None)
    yield trainer
    adapters.delete("a")


class Plain(NamedTuple):
    """The same model by transformers and PEFT, in float64."""

    logprobs: Tensor
    """Of the targets of `PLAIN`, laid end to end, with its graph."""
    parameters: list[Tensor]


@pytest.fixture(scope="module")
def plain(micro_model_dir: Path, start: dict[str, Tensor]) -> Plain:
    model = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float64)
    modules = sorted({key.split(".")[-3] for key in start})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=modules))
    parameters = {
        key.replace(".default", ""): parameter
        for key, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    for key, parameter in parameters.items():
        parameter.data = start[key].double()
    logprobs = []
    for one in PLAIN:
        logits = peft(torch.from_numpy(one.tokens)[None]).logits[0]
        targets = torch.from_numpy(one.inputs["target_tokens"])
        logprobs.append(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    return Plain(torch.cat(logprobs), [parameters[key] for key in start])


def run(
    trainer: Trainer,
    data: Sequence[Example],
    name: str,
    config: Mapping[str, Any] | None = None,
    *,
    backward: bool = True,
) -> ForwardBackwardResult:
    work = trainer.forward_backward(data, name, config or {}, backward=backward)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: ForwardBackwardResult = stop.value
            return result


def examples(trainer: Trainer, name: str, *, optional: bool = True) -> list[Example]:
    """Random ones, with policies near the model, and a third of the tokens masked."""
    rng = np.random.default_rng(5)
    own = run(trainer, PLAIN, "cross_entropy", backward=False).logprobs
    spec = LOSSES[name]
    data = []
    for one, logprobs in zip(PLAIN, own, strict=True):
        inputs: dict[str, Any] = dict(one.inputs)
        count = len(logprobs)
        for key in spec.inputs if optional else spec.required:
            if "logprobs" in key:
                inputs[key] = logprobs + rng.normal(size=count).astype(np.float32) * 0.3
            elif "threshold" in key:
                middle = 0.8 if "low" in key else 1.2
                inputs[key] = rng.uniform(middle - 0.1, middle + 0.1, count).astype(np.float32)
            elif "mask" in key:
                inputs[key] = rng.integers(2, size=count).astype(np.float32)
            else:
                kept = rng.integers(3, size=count) > 0
                inputs[key] = (rng.normal(size=count) * kept).astype(np.float32)
        data.append(Example(one.tokens, inputs))
    return data


def gradient(trainer: Trainer) -> Tensor:
    assert trainer._gradients.parts is not None
    return torch.cat([part.flatten() for part in trainer._gradients.parts])


@ALL
@pytest.mark.parametrize("defaults", [True, False])
def test_the_gradient_is_that_of_the_formula(
    trainer: Trainer, plain: Plain, name: str, defaults: bool
) -> None:
    settings = {} if defaults else OTHER_SETTINGS
    config = {key: settings[key] for key in LOSSES[name].settings if key in settings}
    data = examples(trainer, name, optional=not defaults)
    inputs = {
        key: torch.from_numpy(np.concatenate([one.inputs[key] for one in data])).double()
        for key in data[0].inputs
        if key != "target_tokens"
    }
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    loss = losses(name, plain.logprobs, inputs, offsets, config).sum()
    gradients = torch.autograd.grad(loss, plain.parameters, retain_graph=True)
    wanted = torch.cat([part.flatten() for part in gradients])
    found = run(trainer, data, name, config)
    assert found.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-4)
    assert float(wanted.norm()) > 1e-3
    error = float((gradient(trainer).double() - wanted).norm() / wanted.norm())
    assert error < 1e-4


@ALL
def test_micro_batches_add_up(
    base: BaseModel, adapters: Adapters, trainer: Trainer, name: str
) -> None:
    data = examples(trainer, name)
    adapters.create("b", SPEC)
    whole = Trainer(base, adapters, "b", tokens_per_micro_batch=1000)
    whole.load_state(trainer.state().weights, None)
    one, many = run(whole, data, name), run(trainer, data, name)
    assert many.metrics == {
        key: pytest.approx(value, rel=1e-5, abs=1e-5) for key, value in one.metrics.items()
    }
    assert set(one.metrics) == {"loss:sum", *LOSSES[name].metrics}
    difference = gradient(trainer) - gradient(whole)
    assert float(difference.norm()) < 1e-5 * float(gradient(whole).norm())
    adapters.delete("b")


@ALL
def test_forward_says_the_same_and_leaves_no_gradient(trainer: Trainer, name: str) -> None:
    data = examples(trainer, name)
    only = run(trainer, data, name, backward=False)
    assert trainer._gradients.parts is None
    both = run(trainer, data, name)
    assert only.metrics == both.metrics
    assert all(map(np.array_equal, only.logprobs, both.logprobs))


def test_an_input_that_some_leave_out_has_its_default(trainer: Trainer) -> None:
    config = {"clip_low_threshold": 0.7}
    data = examples(trainer, "ppo")
    for number, one in enumerate(data):
        filled = np.full(len(one.tokens), 0.7, np.float32)
        data[number] = Example(one.tokens, one.inputs | {"clip_low_threshold": filled})
    expected = run(trainer, data, "ppo", config).metrics
    without = dict(data[1].inputs)
    del without["clip_low_threshold"]
    data[1] = Example(data[1].tokens, without)
    assert run(trainer, data, "ppo", config).metrics == expected


def test_a_pair_over_the_budget_goes_alone_and_half_a_pair_is_refused(trainer: Trainer) -> None:
    data = examples(trainer, "dpo")
    result = run(trainer, data, "dpo", backward=False)
    assert result.metrics["pairs:sum"] == 4
    assert [len(logprobs) for logprobs in result.logprobs] == list(LENGTHS)
    with pytest.raises(GatewayError, match="7 datums"):
        trainer.forward_backward(data[:7], "dpo", {}, backward=True)
