"""Logprobs of given sequences.

A step runs one batch: sequences laid end to end, without padding, up to a budget of tokens. The
sequences come from all requests that can share a forward pass, in turn, so that a request of a
thousand sequences does not hold up one of a single sequence. A sequence longer than the budget is
read by itself, in stretches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinkergate.engine.adapters import Adapters
from tinkergate.engine.attention import KVCache, PackedPlan
from tinkergate.engine.base import BaseModel
from tinkergate.engine.reading import STRETCH, likeliest, read, token_logprobs
from tinkergate.engine.sampling import Likeliest
from tinkergate.engine.scheduler import Handle, Scheduler
from tinkergate.errors import GatewayError, cancelled


@dataclass(frozen=True)
class ScoringRequest:
    """Sequences to score, laid end to end."""

    tokens: NDArray[np.int64]
    """(T,)."""
    lengths: NDArray[np.int64]
    """(S,), each from 1 to the model's context; their sum is T."""
    temperature: float = 1.0
    """Logits are divided by it; above 0."""
    topk: int = 0


@dataclass(frozen=True)
class Scored:
    """The outcome of a `ScoringRequest`: one row a token."""

    logprobs: NDArray[np.float32]
    """(T,): of each token given those before it in its sequence; NaN for the first of each."""
    topk: Likeliest | None
    """(T, k); the rows of first tokens hold token 0 and NaN."""


class _Call:
    """A request on its way."""

    def __init__(self, handle: Handle[Scored], adapter: str | None, request: ScoringRequest):
        self.handle = handle
        self.adapter = adapter
        self.request = request
        self.cancelled = False
        self.starts = np.concatenate([[0], np.cumsum(request.lengths)[:-1]])
        self.next = 0
        """The first sequence that is not scored yet."""
        self.reading: tuple[Iterator[Tensor], int] | None = None
        """A long sequence: its states to come, and where in the request the next of them stand."""
        count, k = len(request.tokens), request.topk
        self.logprobs = np.full(count, np.nan, np.float32)
        self.ids = np.zeros((count, k), np.int32)
        self.topk = np.full((count, k), np.nan, np.float32)

    @property
    def pass_key(self) -> tuple[str | None, float, int]:
        """What requests must have in common to share a forward pass."""
        return self.adapter, self.request.temperature, self.request.topk

    @property
    def next_length(self) -> int:
        """The length of the next sequence."""
        return int(self.request.lengths[self.next])

    @property
    def done(self) -> bool:
        return self.next == len(self.request.lengths)


class Scorer:
    """The lane of one base model in which sequences are scored, under any of its adapters."""

    def __init__(self, scheduler: Scheduler, base: BaseModel, adapters: Adapters) -> None:
        self._scheduler = scheduler
        self._base = base
        self._adapters = adapters
        self._lock = threading.Lock()
        self._calls: dict[Handle[Scored], _Call] = {}
        self._turns: deque[_Call] = deque()
        """Requests in the order in which they may put sequences into a batch."""
        self._error: GatewayError | None = None
        scheduler.add(self)

    def __repr__(self) -> str:
        return f"Scorer({self._base.name!r})"

    def submit(self, adapter: str | None, request: ScoringRequest) -> Handle[Scored]:
        """Score sequences under an adapter, or the bare base model (None). May be called anywhere;
        the adapter must stay until the handle's future is done."""
        handle: Handle[Scored] = Handle(self._cancel)
        with self._lock:
            if self._error is not None:
                raise self._error
            call = self._calls[handle] = _Call(handle, adapter, request)
            self._turns.append(call)
        self._scheduler.wake(self)
        return handle

    def _cancel(self, handle: Handle[Scored]) -> bool:
        with self._lock:
            call = self._calls.get(handle)
            if call is None:
                return False
            call.cancelled = True
        self._scheduler.wake(self)
        return True

    def step(self) -> bool:
        """Score one batch."""
        with self._lock:
            turns = list(self._turns)
        for call in turns:
            if call.cancelled:
                self._end(call, cancelled())
        turns = [call for call in turns if not call.cancelled]
        if turns:
            self._work(turns)
        with self._lock:
            return bool(self._calls)

    def abandon(self, error: GatewayError) -> None:
        """End every request, those that come later too."""
        with self._lock:
            self._error = error
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End every request that there is."""
        with self._lock:
            calls = list(self._calls.values())
        for call in calls:
            self._end(call, error)

    def _work(self, turns: Sequence[_Call]) -> None:
        first = turns[0]
        involved = [first]
        try:
            with torch.inference_mode(), self._adapters.active(first.adapter):
                if first.done:
                    pass  # a request without sequences
                elif first.reading is not None or first.next_length > STRETCH:
                    self._read_on(first)
                else:
                    batch = _fill_batch(turns)
                    involved = list({id(call): call for call, _ in batch}.values())
                    self._score(batch)
        except Exception as error:
            for call in involved:
                self._end(call, error)
            return
        for call in involved:
            if call.done and call.reading is None:
                topk = Likeliest(call.ids, call.topk) if call.request.topk else None
                self._end(call, Scored(call.logprobs, topk))
        with self._lock:
            if first in self._turns:
                self._turns.remove(first)
                self._turns.append(first)

    def _read_on(self, call: _Call) -> None:
        """The next stretch of a long sequence."""
        start, length = int(call.starts[call.next]), call.next_length
        if call.reading is None:
            tokens = self._tensor(call.request.tokens[start : start + length])
            call.reading = read(self._base, tokens, KVCache(self._base)), start
        states, place = call.reading
        hidden = next(states)
        end = place + len(hidden)
        last = end == start + length
        self._answer(call, hidden[: len(hidden) - last], np.arange(place + 1, end + 1 - last))
        call.reading = None if last else (states, end)
        call.next += last

    def _score(self, batch: Sequence[tuple[_Call, int]]) -> None:
        """Whole sequences in one forward pass."""
        lengths = [int(call.request.lengths[index]) for call, index in batch]
        tokens = np.concatenate([_sequence(call, index) for call, index in batch])
        positions = np.concatenate([np.arange(length) for length in lengths])
        hidden = self._base.hidden(
            self._tensor(tokens), self._tensor(positions), PackedPlan(lengths)
        )
        start = 0
        by_call: dict[int, tuple[_Call, list[NDArray[np.int64]], list[NDArray[np.int64]]]] = {}
        for (call, index), length in zip(batch, lengths, strict=True):
            _, rows, places = by_call.setdefault(id(call), (call, [], []))
            rows.append(np.arange(start, start + length - 1))
            places.append(call.starts[index] + np.arange(1, length))
            start += length
        for call, rows, places in by_call.values():
            self._answer(call, hidden[self._tensor(np.concatenate(rows))], np.concatenate(places))

    def _answer(self, call: _Call, hidden: Tensor, places: NDArray[np.int64]) -> None:
        """Answer the tokens at `places` of a request, row i of `hidden` being the state before
        token i."""
        request = call.request
        targets = self._tensor(request.tokens[places])
        if not request.topk:
            logprobs = token_logprobs(self._base, hidden, targets, request.temperature)
            call.logprobs[places] = logprobs.cpu().numpy()
            return
        scores = likeliest(self._base, hidden, targets[:, None], request.topk, request.temperature)
        call.logprobs[places] = scores.logprob[:, 0].cpu().numpy()
        call.ids[places] = scores.topk_ids.cpu().numpy()
        call.topk[places] = scores.topk_logprobs.cpu().numpy()

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(self._base.device)

    def _end(self, call: _Call, outcome: Scored | BaseException) -> None:
        """Let go of a request. Its outcome stands if it has none yet."""
        with self._lock:
            if self._calls.pop(call.handle, None) is None:
                return
            self._turns.remove(call)
        call.reading = None
        if isinstance(outcome, Scored):
            call.handle.future.set_result(outcome)
        else:
            call.handle.future.set_exception(outcome)


def _sequence(call: _Call, index: int) -> NDArray[np.int64]:
    start = int(call.starts[index])
    return call.request.tokens[start : start + int(call.request.lengths[index])]


def _fill_batch(turns: Sequence[_Call]) -> list[tuple[_Call, int]]:
    """Sequences for one forward pass with the first request in turn: one of each request that can
    share it, then a second one of each, and so on, within the budget."""
    key = turns[0].pass_key
    sharing = [call for call in turns if call.pass_key == key and call.reading is None]
    batch: list[tuple[_Call, int]] = []
    room = STRETCH
    while sharing:
        for call in list(sharing):
            if call.done or call.next_length > room:
                sharing.remove(call)
                continue
            room -= call.next_length
            batch.append((call, call.next))
            call.next += 1
    return batch
