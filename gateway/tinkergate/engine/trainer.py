"""Training one adapter: forward, backward, optimizer step, state."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinkergate.engine.adapters import Adapters
from tinkergate.engine.attention import PackedPlan
from tinkergate.engine.base import BaseModel
from tinkergate.engine.distillation import Comparison, checked_comparisons, distil
from tinkergate.engine.gradients import Gradients, added
from tinkergate.engine.losses import (
    TARGETS,
    WEIGHTS,
    Example,
    LossSettings,
    MetricTotals,
    active_tokens,
    checked_loss,
)
from tinkergate.engine.optimizer import AdamSettings, AdamW, OptimizerState, check_like
from tinkergate.engine.packing import end_to_end, pack
from tinkergate.engine.rollout_correction import LOSS as CORRECTED_LOSS
from tinkergate.engine.rollout_correction import RolloutCorrection, evaluate_corrected
from tinkergate.engine.threads import threads_for
from tinkergate_kernels import linear_logprob
from tinkergate_kernels.losses import LossSpec, evaluate

TOKENS_PER_MICRO_BATCH = 1024
"""The default token budget: enough to keep two cores busy, and little enough that other work on
the engine's thread waits no more than a few seconds for a small model's micro-batch."""


@dataclass(frozen=True)
class ForwardBackwardResult:
    """What forward_backward computed."""

    logprobs: list[NDArray[np.float32]]
    """For each example, in the shape of its target tokens."""
    metrics: dict[str, float]
    """By `name:reduction`; `loss:sum` is always there."""


@dataclass(frozen=True)
class ReverseKlResult:
    """What reverse_kl computed."""

    losses: list[float]
    """Of each text, weighted."""
    metrics: dict[str, float]
    """By `name:reduction`: "loss:sum", "active_tokens:sum" (rows that count), and "kl:sum" and
    "kl:max" (their divergences in nats, unweighted)."""


class TrainingState(NamedTuple):
    """A copy of what a checkpoint holds."""

    weights: dict[str, Tensor]
    """The adapter's weights by their keys in a PEFT file."""
    optimizer: OptimizerState


class _Outcome(NamedTuple):
    """What one micro-batch gave."""

    logprobs: list[NDArray[np.float32]]
    loss: float
    metrics: dict[str, float]
    active: int
    gradients: list[Tensor] | None


class Trainer:
    """Trains one adapter. Gradients are kept here and not on the parameters, so trainers on one
    base model cannot touch each other's. For the engine's thread.

    A loss or gradient that is not finite is reported as it is: `loss:sum` says nan or inf, and the
    gradient is added. The optimizer step refuses such a gradient and clears it.
    """

    def __init__(
        self,
        base: BaseModel,
        adapters: Adapters,
        name: str,
        *,
        tokens_per_micro_batch: int = TOKENS_PER_MICRO_BATCH,
        correction: RolloutCorrection | None = None,
    ) -> None:
        """`correction` is of the importance_sampling loss; None leaves it as it is."""
        self._base = base
        self._adapters = adapters
        self._name = name
        self._budget = tokens_per_micro_batch
        self._correction = correction
        parameters = adapters.parameters(name)
        self._parameters = [parameter for _, parameter in parameters]
        self._parameter_count = sum(parameter.numel() for parameter in self._parameters)
        self._optimizer = AdamW(parameters)
        self._gradients = Gradients()

    @property
    def optimizer_steps(self) -> int:
        """Steps taken, those of a loaded optimizer included."""
        return self._optimizer.steps

    def forward_backward(
        self,
        examples: Sequence[Example],
        loss_fn: str,
        config: LossSettings,
        *,
        backward: bool,
        per_token: bool = False,
    ) -> Generator[None, None, ForwardBackwardResult]:
        """Compute logprobs and the loss; with `backward`, add its gradient to those since the last
        step. The work is in the generator, which yields between micro-batches. Until it returns,
        nothing has changed: an exception, or closing it, leaves no trace. With `per_token`, the
        step divides what was added by the number of active tokens behind it.

        Raises GatewayError at once for input that breaks the loss's rules, and for a gradient that
        is per token where those before it are not, or the other way round.
        """
        spec = checked_loss(loss_fn, config, examples)
        if backward:
            self._gradients.check(per_token=per_token)
        return self._forward_backward(examples, spec, spec.resolved(config), backward, per_token)

    def _forward_backward(
        self,
        examples: Sequence[Example],
        spec: LossSpec,
        settings: Mapping[str, float],
        backward: bool,
        per_token: bool,
    ) -> Generator[None, None, ForwardBackwardResult]:
        lengths = [len(example.tokens) for example in examples]
        widths = [example.inputs[TARGETS].shape[1:] for example in examples]
        logprobs: list[NDArray[np.float32]] = []
        totals = MetricTotals()
        loss, active = 0.0, 0
        gradients: list[Tensor] | None = None
        together = 2 if spec.paired else 1
        batches = pack(lengths, self._budget, kinds=widths, together=together)
        for number, batch in enumerate(batches):
            if number:
                yield
            part = examples[batch.start : batch.stop]
            outcome = self._micro_batch(part, spec, settings, backward)
            logprobs += outcome.logprobs
            loss += outcome.loss
            totals.add(outcome.metrics, len(batch))
            active += outcome.active
            gradients = added(gradients, outcome.gradients)
        self._gradients.add(gradients, per_token=per_token, tokens=active)
        return ForwardBackwardResult(logprobs, {"loss:sum": loss} | totals.result())

    def _micro_batch(
        self,
        examples: Sequence[Example],
        spec: LossSpec,
        settings: Mapping[str, float],
        backward: bool,
    ) -> _Outcome:
        lengths = [len(example.tokens) for example in examples]
        tokens = self._tensor([example.tokens for example in examples], np.int64)
        targets = self._tensor([example.inputs[TARGETS] for example in examples], np.int64)
        positions = self._tensor([np.arange(length) for length in lengths], np.int64)
        inputs = self._loss_inputs(examples, spec, settings)
        offsets = self._tensor([np.cumsum([0, *lengths])], np.int64)
        with (
            threads_for(len(tokens), self._base.parameter_count),
            self._adapters.active(self._name),
            torch.set_grad_enabled(backward),
        ):
            hidden = self._base.hidden(tokens, positions, PackedPlan(lengths))
            weight, bias, lora = self._base.unembedding()
            logprobs = linear_logprob(hidden, weight, targets, bias=bias, lora=lora)
            # The loss stands outside of the graph, and hands in its gradient.
            if spec.name == CORRECTED_LOSS and self._correction is not None:
                result = evaluate_corrected(self._correction, logprobs.detach(), inputs, offsets)
            else:
                result = evaluate(spec.name, logprobs.detach(), inputs, offsets, settings)
            gradients = None
            if backward:
                gradients = torch.autograd.grad(logprobs, self._parameters, result.gradient)
        flat = logprobs.detach().cpu().numpy()
        return _Outcome(
            np.split(flat, np.cumsum(lengths[:-1])),
            result.loss.item(),
            result.metrics,
            active_tokens(inputs.get(WEIGHTS), len(tokens), result.metrics),
            None if gradients is None else list(gradients),
        )

    def _loss_inputs(
        self, examples: Sequence[Example], spec: LossSpec, settings: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The inputs of the loss, laid end to end; an optional one that only some examples have is
        filled up with its default."""
        inputs = {}
        for name in spec.inputs:
            if not any(name in example.inputs for example in examples):
                continue
            arrays = [
                example.inputs[name]
                if name in example.inputs
                else np.full(example.inputs[TARGETS].shape, spec.filler(name, settings), np.float32)
                for example in examples
            ]
            inputs[name] = self._tensor(arrays, np.float32)
        return inputs

    def _tensor(self, arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> Tensor:
        return end_to_end(arrays, dtype, self._base.device)

    def reverse_kl(
        self, texts: Sequence[Comparison], reference: str | None, temperature: float
    ) -> Generator[None, None, ReverseKlResult]:
        """Add the gradient of the reverse KL divergence to the adapter `reference`, or to the bare
        base model (None), to those since the last step: see `distillation`. Works, and leaves no
        trace, as `forward_backward` does; the reference must stay meanwhile. Raises GatewayError at
        once for texts that break the rules, and where the gradients since the last step are per
        token."""
        checked_comparisons(texts, temperature)
        self._gradients.check(per_token=False)
        return self._reverse_kl(texts, reference, temperature)

    def _reverse_kl(
        self, texts: Sequence[Comparison], reference: str | None, temperature: float
    ) -> Generator[None, None, ReverseKlResult]:
        lengths = [len(text.tokens) + len(text.reference_tokens) for text in texts]
        losses: list[float] = []
        rows, divergence, largest = 0, 0.0, 0.0
        gradients: list[Tensor] | None = None
        for number, batch in enumerate(pack(lengths, self._budget)):
            if number:
                yield
            part = texts[batch.start : batch.stop]
            outcome = distil(self._base, self._adapters, self._name, reference, part, temperature)
            losses += outcome.losses
            rows += len(outcome.divergences)
            divergence += float(outcome.divergences.sum())
            largest = max(largest, float(outcome.divergences.max(initial=0.0)))
            gradients = added(gradients, outcome.gradients)
        self._gradients.add(gradients)
        metrics = {
            "loss:sum": sum(losses),
            "active_tokens:sum": float(rows),
            "kl:sum": divergence,
            "kl:max": largest,
        }
        return ReverseKlResult(losses, metrics)

    def optim_step(self, settings: AdamSettings) -> dict[str, float]:
        """Take one AdamW step with the gradients added up since the last one, and clear them.
        Without any, the gradient is zero. Answers metrics: `grad_norm:mean`, before clipping, and
        if they are per token `normalization_tokens:sum`, what they were divided by.
        Raises GatewayError, leaving the weights alone, if the gradient is not finite."""
        # A step is a few dozen operations on each number.
        with threads_for(32, self._parameter_count):
            gradients, tokens = self._gradients.take()
            if gradients is None:
                gradients = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
            metrics = {"grad_norm:mean": self._optimizer.step(gradients, settings)}
        return metrics if tokens is None else metrics | {"normalization_tokens:sum": float(tokens)}

    def state(self) -> TrainingState:
        """A copy of the weights and of the optimizer's state."""
        weights = {key: p.detach().clone() for key, p in self._adapters.parameters(self._name)}
        return TrainingState(weights, self._optimizer.state())

    def load_state(self, weights: Mapping[str, Tensor], optimizer: OptimizerState | None) -> None:
        """Replace the weights, go on from `optimizer` (None: from nothing), and clear the
        gradients. Raises GatewayError, and changes nothing, if something does not fit the adapter:
        its base model, rank or trained parts are others."""
        parameters: dict[str, Tensor] = dict(self._adapters.parameters(self._name))
        check_like("weights", dict(weights), parameters)
        if optimizer is not None:
            self._optimizer.check_state(optimizer)
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(weights[key])
        self._optimizer.load_state(optimizer)
        self._gradients.clear()
