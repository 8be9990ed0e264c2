"""The loop of `tinkergate train`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tinkergate.cli.rendering import Encoded, question, text_of
from tinkergate.cli.training_plan import Schedule, batches, learning_rate
from tinkergate.cli.training_report import Report, RunFacts, StepFacts
from tinkergate_client import (
    ForwardBackwardResult,
    OperationFuture,
    OptimStepResult,
    Renderer,
    TrainingModel,
)

# One step is worked on while the next one waits at the gateway, so the engine is never idle.
_STEPS_AHEAD = 2
_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class RunSettings:
    """How to train."""

    steps: int
    batch_size: int
    learning_rate: float
    schedule: Schedule
    seed: int
    save: str
    prompts: Sequence[str] = field(default=())
    """What the model is asked before and after."""
    raw: bool = False


class _Step(NamedTuple):
    """A step that was submitted."""

    gradient: OperationFuture[ForwardBackwardResult]
    update: OperationFuture[OptimStepResult]
    rate: float
    tokens: int
    learned_tokens: int


def run(
    model: TrainingModel,
    base_model: str,
    data: Sequence[Encoded],
    renderer: Renderer,
    settings: RunSettings,
    report: Report,
) -> str:
    """Train, and answer the path of the checkpoint. Raises TinkergateError."""
    report.started(
        RunFacts(
            model_id=model.model_id,
            base_model=base_model,
            examples=len(data),
            tokens=sum(example.tokens for example in data),
            learned_tokens=sum(example.learned_tokens for example in data),
            steps=settings.steps,
        )
    )
    _answer(model, renderer, settings, "before", report)
    began = time.monotonic()
    told: list[StepFacts] = []
    for step in _steps(model, data, settings, began):
        told.append(step)
        report.stepped(step)
    seconds = time.monotonic() - began
    saving = model.save_state(settings.save)
    _answer(model, renderer, settings, "after", report)
    path = saving.result()
    report.finished(told[0], told[-1], seconds)
    report.saved(path)
    return path


def _steps(
    model: TrainingModel, data: Sequence[Encoded], settings: RunSettings, began: float
) -> Iterator[StepFacts]:
    """Submit the steps, some ahead of those whose results are awaited."""
    submitted: deque[_Step] = deque()
    drawn = batches(data, settings.batch_size, settings.seed)
    done = tokens = 0
    while done < settings.steps:
        number = done + len(submitted)
        if number < settings.steps and len(submitted) < _STEPS_AHEAD:
            rate = learning_rate(settings.schedule, settings.learning_rate, number, settings.steps)
            submitted.append(_submit(model, next(drawn), rate))
            continue
        step = submitted.popleft()
        gradient, update = step.gradient.result(), step.update.result()
        done += 1
        tokens += step.tokens
        yield StepFacts(
            step=done,
            steps=settings.steps,
            loss=gradient.loss / max(step.learned_tokens, 1),
            learning_rate=step.rate,
            grad_norm=update.metrics.get("grad_norm:mean"),
            tokens=step.tokens,
            tokens_per_second=tokens / (time.monotonic() - began),
        )


def _submit(model: TrainingModel, batch: Sequence[Encoded], rate: float) -> _Step:
    return _Step(
        gradient=model.forward_backward([example.datum for example in batch]),
        update=model.optim_step(learning_rate=rate),
        rate=rate,
        tokens=sum(example.tokens for example in batch),
        learned_tokens=sum(example.learned_tokens for example in batch),
    )


def _answer(
    model: TrainingModel, renderer: Renderer, settings: RunSettings, when: str, report: Report
) -> None:
    """Let the model answer the prompts with its weights of this point."""
    if not settings.prompts:
        return
    sampler = model.save_weights_for_sampler().result()
    calls = [
        sampler.sample_later(
            question(renderer, prompt, raw=settings.raw),
            max_tokens=_ANSWER_TOKENS,
            temperature=0,
        )
        for prompt in settings.prompts
    ]
    for prompt, call in zip(settings.prompts, calls, strict=True):
        answer = text_of(renderer, call.result().sequences[0].tokens)
        report.sampled(when, prompt, answer.strip())
