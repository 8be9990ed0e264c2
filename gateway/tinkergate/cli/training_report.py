"""What a training run tells: a live display on a terminal, plain lines elsewhere, JSON lines for
programs."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from rich.console import RenderableType

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 40


@dataclass(frozen=True)
class RunFacts:
    """What is about to be trained."""

    model_id: str
    base_model: str
    examples: int
    tokens: int
    """Of all examples together."""
    learned_tokens: int
    """Those of the assistant's parts."""
    steps: int


@dataclass(frozen=True)
class StepFacts:
    """One finished step."""

    step: int
    """From 1."""
    steps: int
    loss: float
    """The mean loss of the step's learned tokens, in nats."""
    learning_rate: float
    grad_norm: float | None
    tokens: int
    """Of the step's examples."""
    tokens_per_second: float
    """Since the run began to train."""


class Report(Protocol):
    """Where a training run tells what happens."""

    def started(self, run: RunFacts) -> None:
        """The model is ready."""

    def sampled(self, when: str, prompt: str, answer: str) -> None:
        """The model answered a prompt; `when` is "before" or "after" the training."""

    def stepped(self, step: StepFacts) -> None:
        """A step is done."""

    def saved(self, path: str) -> None:
        """The checkpoint is written."""

    def finished(self, first: StepFacts, last: StepFacts, seconds: float) -> None:
        """All is done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def report(*, as_json: bool) -> Report:
    """The report that fits where the output goes."""
    if as_json:
        return _JsonReport()
    return _LiveReport() if sys.stdout.isatty() else _PlainReport()


class _OnlyOutput:
    """A report that holds nothing open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


class _JsonReport(_OnlyOutput):
    """One JSON object a line, each with an "event"."""

    def started(self, run: RunFacts) -> None:
        self._write("started", asdict(run))

    def sampled(self, when: str, prompt: str, answer: str) -> None:
        self._write("sampled", {"when": when, "prompt": prompt, "answer": answer})

    def stepped(self, step: StepFacts) -> None:
        self._write("step", asdict(step))

    def saved(self, path: str) -> None:
        self._write("saved", {"path": path})

    def finished(self, first: StepFacts, last: StepFacts, seconds: float) -> None:
        self._write(
            "finished", {"first_loss": first.loss, "last_loss": last.loss, "seconds": seconds}
        )

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        print(json.dumps({"event": event, **facts}), flush=True)


class _PlainReport(_OnlyOutput):
    """Lines of text."""

    def started(self, run: RunFacts) -> None:
        self._write(
            f"{run.base_model}: {run.examples} examples, {run.tokens} tokens, of which "
            f"{run.learned_tokens} are learned; {run.steps} steps; model {run.model_id}"
        )

    def sampled(self, when: str, prompt: str, answer: str) -> None:
        self._write(f"{when:>6}  {prompt}\n     -> {answer}")

    def stepped(self, step: StepFacts) -> None:
        self._write(
            f"step {step.step:>{len(str(step.steps))}}/{step.steps}  "
            f"loss {step.loss:.4f}  {step.tokens_per_second:.0f} tokens/s"
        )

    def saved(self, path: str) -> None:
        self._write(f"saved {path}")

    def finished(self, first: StepFacts, last: StepFacts, seconds: float) -> None:
        self._write(f"loss {first.loss:.4f} -> {last.loss:.4f} in {seconds:.0f} s")

    def _write(self, text: str) -> None:
        print(text, flush=True)


class _LiveReport:
    """Text, with one line below it that follows the steps."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, transient=True, refresh_per_second=8)
        self._losses: list[float] = []

    def started(self, run: RunFacts) -> None:
        self._console.print(
            f"[bold]{run.base_model}[/]  {run.examples} examples, {run.tokens} tokens, of which "
            f"{run.learned_tokens} are learned; {run.steps} steps"
        )

    def sampled(self, when: str, prompt: str, answer: str) -> None:
        from rich.text import Text

        self._console.print(Text.assemble((f"{when:>6}  ", "bold"), (prompt, "dim")))
        self._console.print(Text(f"     -> {answer}"))

    def stepped(self, step: StepFacts) -> None:
        self._losses.append(step.loss)
        self._live.update(self._status(step))

    def saved(self, path: str) -> None:
        self._console.print(f"saved [bold]{path}[/]", soft_wrap=True)

    def finished(self, first: StepFacts, last: StepFacts, seconds: float) -> None:
        self._console.print(self._status(last))
        self._console.print(f"loss {first.loss:.3f} -> [bold]{last.loss:.3f}[/] in {seconds:.0f} s")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _status(self, step: StepFacts) -> RenderableType:
        from rich.text import Text

        return Text.assemble(
            (f"step {step.step}/{step.steps}", "bold"),
            f"  loss {step.loss:.3f}  {step.tokens_per_second:.0f} tokens/s  ",
            (sparkline(self._losses, _CURVE_WIDTH), "cyan"),
        )


def sparkline(values: list[float], width: int) -> str:
    """The values as a row of at most `width` blocks, from the least to the greatest; where there
    are more values, each block is a mean of some."""
    if not values:
        return ""
    columns = min(width, len(values))
    bounds = [index * len(values) // columns for index in range(columns + 1)]
    means = [
        math.fsum(values[start:end]) / (end - start) for start, end in itertools.pairwise(bounds)
    ]
    least, span = min(means), max(means) - min(means)
    return "".join(
        _BLOCKS[round((mean - least) / span * (len(_BLOCKS) - 1)) if span else 0] for mean in means
    )
