"""What is asked of a sampler and what comes out, in arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinkergate.engine.drawing import DrawRule


class Likeliest(NamedTuple):
    """The k likeliest tokens of each position, likeliest first, equals by lower id."""

    ids: NDArray[np.int32]
    """(N, k)."""
    logprobs: NDArray[np.float32]
    """(N, k)."""


class Alternatives(NamedTuple):
    """Tokens drawn for prompt positions: row i is for position i + 1."""

    tokens: NDArray[np.int64]
    """(n - 1, k)."""
    logprobs: NDArray[np.float32]
    """(n - 1, k), at the temperature they were drawn at."""


@dataclass(frozen=True)
class Stops:
    """What ends a sequence, beside its greatest length. What ends it is part of it."""

    eos: bool = True
    """Whether the model's own end-of-sequence tokens do."""
    tokens: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    """Texts, none empty; they may span tokens, and begin or end inside one."""


@dataclass(frozen=True)
class PromptQuestions:
    """What is asked about the prompt, whose length is n. Logprobs are at temperature 1, but for
    those of alternatives."""

    logprobs: bool = False
    last_n: int | None = None
    """Answer logprobs of only the last positions, as many; the others are NaN."""
    topk: int = 0
    targets: NDArray[np.int64] | None = None
    """(n - 1, K) token ids whose logprobs are asked, row i for position i + 1; -1 for none."""
    alternatives: int = 0
    """How many tokens to draw for each position but the first."""

    def __bool__(self) -> bool:
        asked = self.logprobs or self.topk or self.alternatives or self.targets is not None
        return bool(asked)


@dataclass(frozen=True)
class SamplingRequest:
    """Sequences to draw."""

    prompt: NDArray[np.int64]
    """(n,), 1 <= n <= the model's context."""
    num_samples: int = 1
    max_tokens: int | None = None
    """The most tokens of a sequence; None means up to the end of the context."""
    seed: int | None = None
    """Below 2^64. None has one drawn."""
    rule: DrawRule = field(default_factory=DrawRule)
    stops: Stops = field(default_factory=Stops)
    topk: int = 0
    """Answer the k likeliest tokens of each sampled position."""
    questions: PromptQuestions = field(default_factory=PromptQuestions)


@dataclass(frozen=True)
class SampledTokens:
    """One sequence that was drawn."""

    tokens: NDArray[np.int32]
    """(m,)."""
    logprobs: NDArray[np.float32]
    """(m,), by the rule of `tinkergate.engine.drawing`."""
    stopped: bool
    """Whether something of `Stops` ended it, rather than its length."""
    topk: Likeliest | None = None


@dataclass(frozen=True)
class PromptAnswers:
    """What was asked about a prompt of n tokens; None for what was not."""

    logprobs: NDArray[np.float32] | None = None
    """(n,): entry i is the logprob of token i given those before; NaN for the first and where it
    was not asked."""
    topk: Likeliest | None = None
    """(n - 1, k): row i is for position i + 1."""
    targets: NDArray[np.float32] | None = None
    """Shaped like the targets asked; 0 for -1."""
    alternatives: Alternatives | None = None


@dataclass(frozen=True)
class Sampled:
    """The outcome of a `SamplingRequest`."""

    sequences: tuple[SampledTokens, ...]
    prompt: PromptAnswers


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class SamplingEvents:
    """Called on the engine thread as the parts come. Must return quickly."""

    on_prompt: Callable[[PromptAnswers], None] = _ignore
    """Called once, if anything was asked about the prompt."""
    on_sequence: Callable[[int, SampledTokens], None] = _ignore
    """Called with a sequence's place in the request and the sequence."""
