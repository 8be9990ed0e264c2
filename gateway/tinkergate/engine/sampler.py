"""Drawing sequences: continuous batching over a KV cache.

Requests join and leave at the ends of steps. A step reads one stretch of one prompt, or moves one
tile of running sequences on by a token. Two rules make a sequence's tokens independent of what
else runs, to the bit:

- a prompt is read by itself, in stretches that depend on its length alone;
- sequences are moved on in tiles of exactly `TILE` rows, short ones filled up with dummies, so
  the matrix products always have the same shape, and the libraries beneath sum every row in the
  same order wherever it stands in its tile. (They do not for other shapes: a product of one row
  takes another path.) Attention is computed per sequence.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinkergate.engine.adapters import Adapters
from tinkergate.engine.attention import CachedPlan, KVCache
from tinkergate.engine.base import BaseModel
from tinkergate.engine.drawing import Row, draw_seed, likeliest_of, stream
from tinkergate.engine.reading import PromptReader, read
from tinkergate.engine.sampling import (
    Likeliest,
    PromptAnswers,
    Sampled,
    SampledTokens,
    SamplingEvents,
    SamplingRequest,
)
from tinkergate.engine.scheduler import Handle, Scheduler
from tinkergate.engine.stopping import StopWatch
from tinkergate.engine.tile_linear import TILE, use_tile_linears
from tinkergate.errors import ErrorReason, GatewayError, Kind, cancelled

_READ_PER_ROUND = 1024
"""Prompt tokens that are read before the running sequences get their next token."""


@dataclass(frozen=True)
class SamplerLimits:
    """How much runs at once; what is beyond waits."""

    max_sequences: int = 64
    """Sequences that are drawn at the same time."""
    cache_bytes: int = 2 << 30
    """Memory for keys and values, counted by the greatest length of each sequence. One sequence
    runs however large it is."""


class _Call:
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
        self.reading: _Reading | None = None
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
    def waiting(self) -> bool:
        """Whether there are sequences to begin."""
        return self.begun < self.request.num_samples


class _Reading:
    """A prompt that is being read."""

    def __init__(self, base: BaseModel, call: _Call, cache: KVCache) -> None:
        request = call.request
        self.prompt = torch.from_numpy(request.prompt).to(base.device)
        self.stretches = read(base, self.prompt, cache)
        self.reader = PromptReader(
            base,
            self.prompt,
            request.questions,
            temperature=request.rule.temperature,
            seed=call.seed,
        )


class _Sequence:
    """A sequence that is being drawn."""

    def __init__(self, call: _Call, index: int, cache: KVCache, watch: StopWatch) -> None:
        self.call = call
        self.index = index
        self.cache = cache
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


class Sampler:
    """The lane of one base model in which sequences are drawn, under any of its adapters."""

    def __init__(
        self,
        scheduler: Scheduler,
        base: BaseModel,
        adapters: Adapters,
        limits: SamplerLimits | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._base = base
        self._adapters = adapters
        self._limits = limits or SamplerLimits()
        self._token_bytes = _cache_bytes_per_token(base)
        use_tile_linears(base.hf)
        self._lock = threading.Lock()
        self._calls: dict[Handle[Sampled], _Call] = {}
        """All that are not done, by age."""
        self._submitted = 0
        self._error: GatewayError | None = None
        self._sequences: list[_Sequence] = []
        """Running, by age."""
        self._round: deque[list[_Sequence]] = deque()
        """Tiles that have yet to get their token in this round."""
        self._may_read = _READ_PER_ROUND
        scheduler.add(self)

    def __repr__(self) -> str:
        return f"Sampler({self._base.name!r})"

    def submit(
        self, adapter: str | None, request: SamplingRequest, events: SamplingEvents | None = None
    ) -> Handle[Sampled]:
        """Draw sequences under an adapter, or the bare base model (None). May be called anywhere;
        the adapter must stay until the handle's future is done."""
        handle: Handle[Sampled] = Handle(self._cancel)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._submitted += 1
            self._calls[handle] = _Call(
                handle, self._submitted, adapter, request, events or SamplingEvents()
            )
        self._scheduler.wake(self)
        return handle

    def _cancel(self, handle: Handle[Sampled]) -> bool:
        with self._lock:
            call = self._calls.get(handle)
            if call is None:
                return False
            call.cancelled = True
        self._scheduler.wake(self)
        return True

    def step(self) -> bool:
        """Read a stretch of a prompt, begin a sequence, or give one tile its next token."""
        with self._lock:
            calls = list(self._calls.values())
        for call in calls:
            if call.cancelled:
                self._end(call, cancelled())
        beginner = self._next_to_begin([call for call in calls if not call.cancelled])
        if beginner is not None and (self._may_read > 0 or not self._sequences):
            with self._failing([beginner]), torch.inference_mode():
                if beginner.first is None:
                    self._read(beginner)
                else:
                    self._begin(beginner)
        elif self._sequences:
            if not self._round:
                self._round.extend(self._tiles())
                self._may_read = _READ_PER_ROUND
            running = set(self._sequences)
            tile = [sequence for sequence in self._round.popleft() if sequence in running]
            if tile:
                with self._failing([sequence.call for sequence in tile]), torch.inference_mode():
                    self._decode(tile)
        with self._lock:
            return bool(self._calls)

    def abandon(self, error: GatewayError) -> None:
        """End every request."""
        with self._lock:
            self._error = error
            calls = list(self._calls.values())
        for call in calls:
            self._end(call, error)

    def _next_to_begin(self, calls: Sequence[_Call]) -> _Call | None:
        """The request with the fewest running sequences that has more to begin, if the limits
        leave room for one more."""
        waiting = [call for call in calls if call.waiting]
        if not waiting:
            return None
        call = min(waiting, key=lambda call: (call.running, call.number))
        if not self._sequences:
            return call
        tokens = sum(self._reserved(sequence.call) for sequence in self._sequences)
        tokens += sum(len(call.request.prompt) for call in calls if call.cache is not None)
        tokens += self._reserved(call)
        fits = tokens * self._token_bytes <= self._limits.cache_bytes
        return call if fits and len(self._sequences) < self._limits.max_sequences else None

    def _greatest_length(self, call: _Call) -> int:
        """The most tokens that a sequence of this request may get."""
        room = self._base.max_context - len(call.request.prompt)
        asked = call.request.max_tokens
        return room if asked is None else min(room, asked)

    def _reserved(self, call: _Call) -> int:
        """Tokens that a sequence of this request may come to hold in its cache."""
        return len(call.request.prompt) + self._greatest_length(call)

    def _read(self, call: _Call) -> None:
        """Read a stretch of the prompt."""
        if call.reading is None or call.cache is None:
            call.cache = KVCache(self._base)
            call.reading = _Reading(self._base, call, call.cache)
        with self._adapters.active(call.adapter):
            hidden = next(call.reading.stretches)
            self._may_read -= len(hidden)
            call.reading.reader.take(hidden)
            if call.cache.length < len(call.request.prompt):
                return
            logits = self._base.logits(hidden[-1:])[0]
        call.first = Row(logits, call.request.rule.logprob_temperature)
        call.answers = call.reading.reader.answers()
        call.reading = None
        if call.request.questions:
            call.events.on_prompt(call.answers)

    def _begin(self, call: _Call) -> None:
        """Begin one sequence, with its first token."""
        first, cache, index = call.first, call.cache, call.begun
        assert first is not None
        assert cache is not None
        call.begun += 1
        if call.waiting:
            cache = cache.fork()
        else:
            call.first = call.cache = None
        watch = StopWatch(call.request.stops, self._base)
        sequence = _Sequence(call, index, cache, watch)
        self._sequences.append(sequence)
        call.running += 1
        if self._greatest_length(call) == 0:
            self._finish(sequence, stopped=False)
        else:
            self._extend([sequence], [first])

    def _tiles(self) -> list[list[_Sequence]]:
        """The running sequences in tiles of one adapter each."""
        by_adapter: dict[str | None, list[_Sequence]] = {}
        for sequence in self._sequences:
            by_adapter.setdefault(sequence.call.adapter, []).append(sequence)
        return [
            group[start : start + TILE]
            for group in by_adapter.values()
            for start in range(0, len(group), TILE)
        ]

    def _decode(self, tile: Sequence[_Sequence]) -> None:
        """Give every sequence of a tile its next token."""
        # The dummies form one sequence of their own, which nobody looks at.
        dummies = TILE - len(tile)
        tokens = [sequence.tokens[-1] for sequence in tile] + [0] * dummies
        positions = [sequence.position for sequence in tile] + list(range(dummies))
        rows = [(sequence.cache, 1) for sequence in tile]
        if dummies:
            rows.append((KVCache(self._base), dummies))
        device = self._base.device
        with self._adapters.active(tile[0].call.adapter):
            logits = self._base.logits(
                self._base.hidden(
                    torch.tensor(tokens, device=device),
                    torch.tensor(positions, device=device),
                    CachedPlan(rows),
                )
            )
        temperatures = [sequence.call.request.rule.logprob_temperature for sequence in tile]
        self._extend(
            tile, [Row(row, heat) for row, heat in zip(logits, temperatures, strict=False)]
        )

    def _extend(self, sequences: Sequence[_Sequence], rows: Sequence[Row]) -> None:
        """Draw the next token of each sequence from its row."""
        drawn = [
            row.draw(sequence.call.request.rule, sequence.uniforms.random(1))
            for sequence, row in zip(sequences, rows, strict=True)
        ]
        logprobs = torch.cat(
            [row.logprob(token) for row, token in zip(rows, drawn, strict=True)]
        ).tolist()
        tokens = torch.cat(drawn).tolist()
        for sequence, row, token, logprob in zip(sequences, rows, tokens, logprobs, strict=True):
            with self._failing([sequence.call]):
                self._take_token(sequence, row, token, logprob)

    def _take_token(self, sequence: _Sequence, row: Row, token: int, logprob: float) -> None:
        if not np.isfinite(logprob):
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_NOT_FINITE,
                "the model's logits are not finite numbers: its weights have diverged",
            )
        call = sequence.call
        sequence.tokens.append(token)
        sequence.logprobs.append(logprob)
        if k := call.request.topk:
            likeliest = row.logprobs()
            ids = likeliest_of(likeliest, k)
            sequence.topk.append((ids, likeliest[ids]))
        if sequence.watch.ends(token):
            self._finish(sequence, stopped=True)
        elif len(sequence.tokens) == self._greatest_length(call):
            self._finish(sequence, stopped=False)

    def _finish(self, sequence: _Sequence, *, stopped: bool) -> None:
        """A sequence has ended: report it, and its request if it was the last."""
        call = sequence.call
        self._sequences.remove(sequence)
        call.running -= 1
        result = sequence.result(stopped=stopped)
        call.finished[sequence.index] = result
        call.events.on_sequence(sequence.index, result)
        if not call.waiting and not call.running:
            sequences = tuple(done for done in call.finished if done is not None)
            self._end(call, Sampled(sequences, call.answers))

    def _end(self, call: _Call, outcome: Sampled | BaseException) -> None:
        """Let go of a request. Its outcome stands if it has none yet."""
        with self._lock:
            if self._calls.pop(call.handle, None) is None:
                return
        self._sequences = [sequence for sequence in self._sequences if sequence.call is not call]
        call.cache = call.first = call.reading = None
        if isinstance(outcome, Sampled):
            call.handle.future.set_result(outcome)
        else:
            call.handle.future.set_exception(outcome)

    @contextmanager
    def _failing(self, calls: Sequence[_Call]) -> Iterator[None]:
        """An error in the block ends these requests, and nothing else."""
        try:
            yield
        except Exception as error:
            for call in calls:
                self._end(call, error)


def _cache_bytes_per_token(base: BaseModel) -> int:
    """Memory that keys and values of one token take."""
    config = base.hf.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or base.hidden_size // config.num_attention_heads
    return int(2 * base.num_layers * heads * width * base.dtype.itemsize)
