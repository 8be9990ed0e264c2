"""Drawing sequences: continuous batching over a KV cache.

Requests join and leave at the ends of steps. A step reads a stretch of a long prompt or several
short ones, or moves a tile of running sequences on by a token. Two rules make a sequence's tokens
independent of what else runs, to the bit:

- sequences are moved on in tiles of exactly `TILE` rows, and the ends of prompts are read in
  tiles of exactly `READ_TILE` rows; short tiles are filled up with dummies. So the matrix products
  have the same shape whatever else runs, and for one shape the libraries beneath sum every row in
  the same order, wherever it stands. (For another shape they may not: a product of one row takes
  another path.) Attention is computed per sequence;
- what comes before the end of a long prompt is read by itself, in stretches that depend on its
  length alone.
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
from tinkergate.engine.drawing import Row, likeliest_of
from tinkergate.engine.reading import STRETCH
from tinkergate.engine.sampler_calls import Call, Reading, RunningSequence
from tinkergate.engine.sampling import Sampled, SamplingEvents, SamplingRequest
from tinkergate.engine.scheduler import Handle, Scheduler
from tinkergate.engine.slabs import DecodePlan, Slabs, decoding_order
from tinkergate.engine.stopping import StopWatch
from tinkergate.engine.threads import one_thread
from tinkergate.engine.tile_linear import TILE, use_tile_linears
from tinkergate.errors import ErrorReason, GatewayError, Kind, cancelled

READ_TILE = 128
"""Rows in which prompts, or their ends, are read together: as many as libraries need to multiply at
nearly their full rate. A lone short prompt pays for dummies, with the time of two decoding steps
at most."""

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
        self._calls: dict[Handle[Sampled], Call] = {}
        """All that are not done, by age."""
        self._submitted = 0
        self._error: GatewayError | None = None
        self._sequences: list[RunningSequence] = []
        """Running, by age."""
        self._slabs = Slabs()
        self._round: deque[list[RunningSequence]] = deque()
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
            self._calls[handle] = Call(
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

    @torch.inference_mode()
    def step(self) -> bool:
        """Read a stretch of a prompt, begin a sequence, or give one tile its next token."""
        with self._lock:
            calls = list(self._calls.values())
        for call in calls:
            if call.cancelled:
                self._end(call, cancelled())
        waiting = [call for call in calls if call.waiting and not call.cancelled]
        beginner = self._next_to_begin(waiting)
        if beginner is not None and (self._may_read > 0 or not self._sequences):
            involved = [beginner] if beginner.first else self._readers(beginner, waiting)
            with self._failing(involved):
                if beginner.first:
                    self._begin(beginner)
                else:
                    self._read(involved)
        elif self._sequences:
            if not self._round:
                self._round.extend(self._tiles())
                self._may_read = _READ_PER_ROUND
            running = set(self._sequences)
            tile = [sequence for sequence in self._round.popleft() if sequence in running]
            if tile:
                with self._failing([sequence.call for sequence in tile]):
                    self._decode(tile)
        with self._lock:
            return bool(self._calls)

    def abandon(self, error: GatewayError) -> None:
        """End every request, those that come later too."""
        with self._lock:
            self._error = error
        self.fail(error)

    @torch.inference_mode()
    def fail(self, error: BaseException) -> None:
        """End every request that there is."""
        with self._lock:
            calls = list(self._calls.values())
        for call in calls:
            self._end(call, error)

    def _next_to_begin(self, waiting: Sequence[Call]) -> Call | None:
        """The request with the fewest running sequences that has more to begin, if the limits
        leave room for one more."""
        if not waiting:
            return None
        call = min(waiting, key=lambda call: (call.running, call.number))
        if not self._sequences:
            return call
        tokens = self._tokens_held(waiting) + self._reserved(call)
        fits = tokens * self._token_bytes <= self._limits.cache_bytes
        return call if fits and len(self._sequences) < self._limits.max_sequences else None

    def _tokens_held(self, waiting: Sequence[Call]) -> int:
        """Tokens that caches may come to hold for what has begun."""
        running = sum(self._reserved(sequence.call) for sequence in self._sequences)
        return running + sum(len(call.request.prompt) for call in waiting if call.holds_cache)

    def _greatest_length(self, call: Call) -> int:
        """The most tokens that a sequence of this request may get."""
        room = self._base.max_context - len(call.request.prompt)
        asked = call.request.max_tokens
        return room if asked is None else min(room, asked)

    def _reserved(self, call: Call) -> int:
        """Tokens that a sequence of this request may come to hold in its cache."""
        return len(call.request.prompt) + self._greatest_length(call)

    def _readers(self, first: Call, calls: Sequence[Call]) -> list[Call]:
        """The requests whose prompts are read together: the first alone if it is long, else with
        the ends of others that fit into its tile, as far as the limits leave room for them."""
        readers, room = [first], READ_TILE - first.unread
        if room < 0:
            return readers
        limits = self._limits
        slots = limits.max_sequences - len(self._sequences) - 1
        tokens = limits.cache_bytes // self._token_bytes - self._tokens_held(calls)
        tokens -= self._reserved(first)
        for call in calls:
            if call is first or call.adapter != first.adapter or not 0 < call.unread <= room:
                continue
            tokens -= self._reserved(call)
            if len(readers) > slots or tokens < 0:
                break
            readers.append(call)
            room -= call.unread
        return readers

    def _read(self, calls: Sequence[Call]) -> None:
        """Read a stretch of each prompt, in one forward pass."""
        base = self._base
        readings = []
        for call in calls:
            if call.reading is None:
                call.reading = Reading(base, call.request, call.seed)
            readings.append(call.reading)
        counts = [min(reading.left, STRETCH) for reading in readings]
        dummies = max(0, READ_TILE - sum(counts))
        places = [(reading.cache.length, n) for reading, n in zip(readings, counts, strict=True)]
        tokens = [
            reading.prompt[p : p + n] for reading, (p, n) in zip(readings, places, strict=True)
        ]
        positions = [torch.arange(p, p + n) for p, n in places]
        rows = [(reading.cache, n) for reading, n in zip(readings, counts, strict=True)]
        if dummies:
            tokens.append(tokens[0].new_zeros(dummies))
            positions.append(torch.zeros(dummies, dtype=torch.int64))
            rows.append((KVCache(base), dummies))
        self._may_read -= sum(counts)
        with self._adapters.active(calls[0].adapter):
            hidden = base.hidden(
                torch.cat(tokens), torch.cat(positions).to(base.device), CachedPlan(rows)
            )
            parts = torch.split(hidden[: sum(counts)], counts)
            for call, reading, part in zip(calls, readings, parts, strict=True):
                with self._failing([call]):
                    reading.reader.take(part)
            done = [
                (call, part[-1:])
                for call, part in zip(calls, parts, strict=True)
                if call.reading is not None and not call.reading.left
            ]
            # Of short prompts more end in one pass than a tile has rows.
            tiles = [done[start : start + TILE] for start in range(0, len(done), TILE)]
            logits = [self._logits(torch.cat([last for _, last in tile])) for tile in tiles]
        for place, (call, _) in enumerate(done):
            with self._failing([call]):
                self._finish_reading(call, logits[place // TILE][place % TILE])

    def _finish_reading(self, call: Call, logits: Tensor) -> None:
        """The prompt is read; the first token of every sequence is drawn from these logits."""
        assert call.reading is not None
        call.first = Row(logits, call.request.rule.logprob_temperature)
        call.answers = call.reading.reader.answers()
        call.cache, call.reading = call.reading.cache, None
        if call.request.questions:
            call.events.on_prompt(call.answers)

    def _logits(self, hidden: Tensor) -> Tensor:
        """The logits of up to TILE states, from a product of exactly TILE rows."""
        missing = TILE - len(hidden)
        return self._base.logits(torch.nn.functional.pad(hidden, (0, 0, 0, missing)))

    def _begin(self, call: Call) -> None:
        """Begin one sequence, with its first token."""
        first, cache, index = call.first, call.cache, call.begun
        assert first is not None
        assert cache is not None
        held = self._slabs.admit(call.adapter, cache)
        call.begun += 1
        if not call.waiting:
            call.first = call.cache = None
        watch = StopWatch(call.request.stops, self._base)
        sequence = RunningSequence(call, index, held, watch)
        self._sequences.append(sequence)
        call.running += 1
        if self._greatest_length(call) == 0:
            self._finish(sequence, stopped=False)
        else:
            self._extend([sequence], [first])

    def _tiles(self) -> list[list[RunningSequence]]:
        """The running sequences in tiles of one adapter each, those of about one length in one."""
        by_adapter: dict[str | None, list[RunningSequence]] = {}
        for sequence in self._sequences:
            by_adapter.setdefault(sequence.call.adapter, []).append(sequence)
        for group in by_adapter.values():
            group.sort(key=lambda sequence: decoding_order(sequence.held))
        return [
            group[start : start + TILE]
            for group in by_adapter.values()
            for start in range(0, len(group), TILE)
        ]

    def _decode(self, tile: Sequence[RunningSequence]) -> None:
        """Give every sequence of a tile its next token."""
        for sequence in tile:
            sequence.held = self._slabs.with_room(sequence.call.adapter, sequence.held)
        tile = sorted(tile, key=lambda sequence: decoding_order(sequence.held))
        # The dummies form one sequence of their own, which nobody looks at.
        dummies = TILE - len(tile)
        tokens = [sequence.tokens[-1] for sequence in tile] + [0] * dummies
        positions = [sequence.position for sequence in tile] + [0] * dummies
        held = [sequence.held for sequence in tile]
        device = self._base.device
        with self._adapters.active(tile[0].call.adapter):
            hidden = self._base.hidden(
                torch.tensor(tokens, device=device),
                torch.tensor(positions, device=device),
                DecodePlan(held, dummies, lambda: KVCache(self._base)),
            )
            logits = self._logits(hidden)
        temperatures = [sequence.call.request.rule.logprob_temperature for sequence in tile]
        with one_thread():
            distributions = [Row(row, t) for row, t in zip(logits, temperatures, strict=False)]
            self._extend(tile, distributions)

    def _extend(self, sequences: Sequence[RunningSequence], rows: Sequence[Row]) -> None:
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

    def _take_token(self, sequence: RunningSequence, row: Row, token: int, logprob: float) -> None:
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

    def _finish(self, sequence: RunningSequence, *, stopped: bool) -> None:
        """A sequence has ended: report it, and its request if it was the last."""
        call = sequence.call
        self._sequences.remove(sequence)
        self._slabs.release(sequence.held)
        call.running -= 1
        result = sequence.result(stopped=stopped)
        call.finished[sequence.index] = result
        call.events.on_sequence(sequence.index, result)
        if not call.waiting and not call.running:
            sequences = tuple(done for done in call.finished if done is not None)
            self._end(call, Sampled(sequences, call.answers))

    def _end(self, call: Call, outcome: Sampled | BaseException) -> None:
        """Let go of a request. Its outcome stands if it has none yet."""
        with self._lock:
            if self._calls.pop(call.handle, None) is None:
                return
        try:
            for sequence in [running for running in self._sequences if running.call is call]:
                self._sequences.remove(sequence)
                self._slabs.release(sequence.held)
            call.cache = call.first = call.reading = None
        finally:  # whatever goes wrong, nobody waits for ever
            if isinstance(outcome, Sampled):
                call.handle.future.set_result(outcome)
            else:
                call.handle.future.set_exception(outcome)

    @contextmanager
    def _failing(self, calls: Sequence[Call]) -> Iterator[None]:
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
