"""Reading a given sequence: its states and what they say of its tokens, a stretch at a time.

A vocabulary is large: the logits of one long prompt may take gigabytes. So a sequence is read in
stretches, which also keeps the steps of the engine thread short, and logits are made for a few
rows at once and let go again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinkergate.engine.attention import CachedPlan, KVCache
from tinkergate.engine.base import BaseModel
from tinkergate.engine.drawing import (
    STREAM_OF_ALTERNATIVES,
    DrawRule,
    Row,
    stream,
)
from tinkergate.engine.sampling import Alternatives, Likeliest, PromptAnswers, PromptQuestions
from tinkergate_kernels import LinearScores, linear_logprob, linear_scores

STRETCH = 512
"""Tokens that are read in one step."""

_LOGITS_AT_ONCE = 1 << 23
"""The most logits in memory at once: 32 MiB of float32."""


def rows_at_once(base: BaseModel) -> int:
    """How many rows of logits to make at once."""
    return max(1, _LOGITS_AT_ONCE // base.vocab_size)


def read(base: BaseModel, tokens: Tensor, cache: KVCache) -> Iterator[Tensor]:
    """The states of a sequence (n,) under the active adapter, in stretches (m, width), into an
    empty cache. The cuts depend on n alone, and so does every bit of the states."""
    positions = torch.arange(len(tokens), device=tokens.device)
    for part, place in zip(
        torch.split(tokens, STRETCH), torch.split(positions, STRETCH), strict=True
    ):
        yield base.hidden(part, place, CachedPlan([(cache, len(part))]))


def token_logprobs(
    base: BaseModel, hidden: Tensor, tokens: Tensor, temperature: float = 1.0
) -> Tensor:
    """The logprobs, float32 (m,), of `tokens` (m,) that follow the states `hidden` (m, width),
    under the active adapter. Full logits are never made."""
    weight, bias, lora = base.unembedding()
    return linear_logprob(hidden, weight, tokens, bias=bias, lora=lora, temperature=temperature)


def likeliest(
    base: BaseModel, hidden: Tensor, tokens: Tensor, k: int, temperature: float = 1.0
) -> LinearScores:
    """The logprobs of `tokens` (m, K), of which each row has one or more, and the k likeliest
    tokens: as `token_logprobs`, in one pass over the vocabulary."""
    weight, bias, lora = base.unembedding()
    return linear_scores(
        hidden, weight, tokens, bias=bias, lora=lora, temperature=temperature, topk=k
    )


class PromptReader:
    """Answers `PromptQuestions` from a prompt's states. Row i is about token i + 1."""

    def __init__(
        self,
        base: BaseModel,
        prompt: Tensor,
        questions: PromptQuestions,
        *,
        temperature: float,
        seed: int,
    ) -> None:
        self._base = base
        self._prompt = prompt
        self._asked = questions
        self._rule = DrawRule(temperature)
        self._taken = 0
        rows = self._rows = len(prompt) - 1
        self._first_scored = rows
        """The first row whose token's logprob is asked."""
        if questions.logprobs:
            self._first_scored = 0 if questions.last_n is None else rows - questions.last_n
        self._tables = bool(questions.topk) or questions.targets is not None
        self._logprobs = np.full(rows + 1, np.nan, np.float32)
        k = questions.topk
        self._topk = Likeliest(np.empty((rows, k), np.int32), np.empty((rows, k), np.float32))
        shape = (rows, 0) if questions.targets is None else questions.targets.shape
        self._targets = np.zeros(shape, np.float32)
        k = questions.alternatives
        self._alternatives = Alternatives(
            np.empty((rows, k), np.int64), np.empty((rows, k), np.float32)
        )
        self._uniforms = stream(seed, STREAM_OF_ALTERNATIVES).random((rows, k))

    def take(self, hidden: Tensor) -> None:
        """The next stretch of states (m, width), under the adapter that made them."""
        begin, self._taken = self._taken, self._taken + len(hidden)
        end = min(self._taken, self._rows)
        start = max(begin, self._first_scored)
        if start < end:
            logprobs = token_logprobs(
                self._base, hidden[start - begin : end - begin], self._prompt[start + 1 : end + 1]
            )
            self._logprobs[start + 1 : end + 1] = _numpy(logprobs)
        if self._tables and begin < end:
            self._tabulate(slice(begin, end), hidden[: end - begin])
        if self._asked.alternatives:
            step = rows_at_once(self._base)
            for start in range(begin, end, step):
                states = hidden[start - begin : min(start + step, end) - begin]
                self._draw_alternatives(start, self._base.logits(states))

    def _tabulate(self, rows: slice, hidden: Tensor) -> None:
        """The likeliest tokens and the targets' logprobs of these rows."""
        asked = self._asked
        # The prompt's own token comes first: a row without any token is not read.
        tokens = self._prompt[rows.start + 1 : rows.stop + 1, None]
        if asked.targets is not None:
            targets = torch.from_numpy(asked.targets[rows]).to(tokens.device)
            tokens = torch.cat([tokens, targets], dim=1)
        scores = likeliest(self._base, hidden, tokens, asked.topk)
        if asked.topk:
            self._topk.ids[rows] = _numpy(scores.topk_ids)
            self._topk.logprobs[rows] = _numpy(scores.topk_logprobs)
        if asked.targets is not None:
            self._targets[rows] = _numpy(scores.logprob[:, 1:])

    def _draw_alternatives(self, start: int, logits: Tensor) -> None:
        """The alternatives of the rows from `start` on, of which these are the logits."""
        for place, row_logits in enumerate(logits, start):
            row = Row(row_logits, self._rule.logprob_temperature)
            drawn = row.draw(self._rule, self._uniforms[place])
            self._alternatives.tokens[place] = _numpy(drawn)
            self._alternatives.logprobs[place] = _numpy(row.logprob(drawn))

    def answers(self) -> PromptAnswers:
        """What was asked, once all states are taken."""
        asked = self._asked
        return PromptAnswers(
            logprobs=self._logprobs if asked.logprobs else None,
            topk=self._topk if asked.topk else None,
            targets=None if asked.targets is None else self._targets,
            alternatives=self._alternatives if asked.alternatives else None,
        )


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()
