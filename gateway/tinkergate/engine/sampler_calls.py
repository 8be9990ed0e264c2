"""Requests on their way through a sampler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tinkergate.engine.attention import KVCache
from tinkergate.engine.base import BaseModel
from tinkergate.engine.drawing import Row, draw_seed, stream
from tinkergate.engine.reading import PromptReader
from tinkergate.engine.sampling import (
    Likeliest,
    PromptAnswers,
    Sampled,
    SampledTokens,
    SamplingEvents,
    SamplingRequest,
)
from tinkergate.engine.scheduler import Handle
from tinkergate.engine.slabs import Held
from tinkergate.engine.stopping import StopWatch


class Call:
    """A request on its way."""

    def __init__(
        self,
        handle: Handle[Sampled],
        number: int,
        adapter: str | None,
        request: SamplingRequest,
        events: SamplingEvents,
    ) -> None:
        self.handle = handle
        self.number = number
        self.adapter = adapter
        self.request = request
        self.events = events
        self.seed = draw_seed() if request.seed is None else request.seed
        self.cancelled = False
        self.reading: Reading | None = None
        """The prompt, while it is being read."""
        self.cache: KVCache | None = None
        """Of the prompt, until the last sequence has begun."""
        self.first: Row | None = None
        """What the first token of every sequence is drawn from, once the prompt is read."""
        self.answers = PromptAnswers()
        self.begun = 0
        self.running = 0
        self.finished: list[SampledTokens | None] = [None] * request.num_samples

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are not read yet."""
        if self.first is not None:
            return 0
        return len(self.request.prompt) if self.reading is None else self.reading.left

    @property
    def holds_cache(self) -> bool:
        """Whether the prompt is in memory beside the sequences that run."""
        return self.reading is not None or self.cache is not None

    @property
    def waiting(self) -> bool:
        """Whether there are sequences to begin."""
        return self.begun < self.request.num_samples


class Reading:
    """A prompt that is being read."""

    def __init__(self, base: BaseModel, request: SamplingRequest, seed: int) -> None:
        self.prompt = torch.from_numpy(request.prompt).to(base.device)
        self.cache = KVCache(base)
        self.reader = PromptReader(
            base, self.prompt, request.questions, temperature=request.rule.temperature, seed=seed
        )

    @property
    def left(self) -> int:
        """Tokens that are not read yet."""
        return len(self.prompt) - self.cache.length


class RunningSequence:
    """A sequence that is being drawn."""

    def __init__(self, call: Call, index: int, held: Held, watch: StopWatch) -> None:
        self.call = call
        self.index = index
        self.held = held
        self.watch = watch
        self.uniforms = stream(call.seed, index)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[tuple[Tensor, Tensor]] = []

    @property
    def position(self) -> int:
        """That of the last token drawn."""
        return len(self.call.request.prompt) + len(self.tokens) - 1

    def result(self, *, stopped: bool) -> SampledTokens:
        """What was drawn."""
        topk = None
        if k := self.call.request.topk:
            ids, logprobs = zip(*self.topk, strict=True) if self.topk else ((), ())
            topk = Likeliest(
                np.array([part.cpu().numpy() for part in ids], np.int32).reshape(-1, k),
                np.array([part.cpu().numpy() for part in logprobs], np.float32).reshape(-1, k),
            )
        return SampledTokens(
            np.array(self.tokens, np.int32), np.array(self.logprobs, np.float32), stopped, topk
        )
