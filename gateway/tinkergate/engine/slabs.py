"""Keys and values of the sequences that are being drawn, side by side.

A decoding step attends from one token of each of many sequences. One call a sequence and layer
would cost more than the sums themselves, so sequences of about one length share a slab: tensors
(slots, key heads, capacity, width), in which one call attends for all of them. What lies beyond a
sequence's own length is masked. The capacity follows from the sequence's own length, and the
library attends for each slot by itself, so a sequence's numbers do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tinkergate.engine.attention import CachedPlan, KVCache, Plan, Rule, attend

LEAST_CAPACITY = 64
GREATEST_CAPACITY = 1024
"""Longer sequences keep a cache of their own: attending over them is worth a call, and half a
slab's room unused would cost more than the calls."""

_SLOTS_AT_ONCE = 16
"""Slots are added by doubling, but no more than these at once."""


def capacity_for(length: int) -> int:
    """The capacity of the slab that a sequence of so many tokens is kept in."""
    return max(LEAST_CAPACITY, 1 << (length - 1).bit_length())


class Slab:
    """Sequences of up to `capacity` tokens, in slots 0, 1, ... without holes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.members: list[Place] = []
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Keys (slots, key heads, capacity, width) and values of each layer."""

    def add(self, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> Place:
        """Take in a sequence: the first `length` tokens of (1, key heads, n, width) a layer."""
        slot = len(self.members)
        self._make_room(slot + 1, layers)
        for pair, given in zip(self.layers, layers, strict=True):
            for held, new in zip(pair, given, strict=True):
                held[slot, :, :length] = new[0, :, :length]
                # Masked numbers are multiplied by zero, which a NaN would survive.
                held[slot, :, length:] = 0
        place = Place(self, slot, length)
        self.members.append(place)
        return place

    def remove(self, place: Place) -> None:
        """Let go of a sequence. The last one takes its slot."""
        last = self.members.pop()
        if last is not place:
            for pair in self.layers:
                for held in pair:
                    held[place.slot, :, : last.length] = held[last.slot, :, : last.length]
                    held[place.slot, :, last.length :] = 0
            last.slot = place.slot
            self.members[last.slot] = last
        if not self.members:
            self.layers.clear()

    def held_by(self, place: Place) -> list[tuple[Tensor, Tensor]]:
        """Views of the keys and values of one sequence, (1, key heads, capacity, width) a layer."""
        rows = slice(place.slot, place.slot + 1)
        return [(keys[rows], values[rows]) for keys, values in self.layers]

    def _make_room(self, slots: int, like: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not self.layers:
            self.layers = [
                (self._empty(keys, slots), self._empty(values, slots)) for keys, values in like
            ]
        present = len(self.layers[0][0])
        if present < slots:
            more = max(slots, present + min(present, _SLOTS_AT_ONCE))
            self.layers = [
                (self._grown(keys, more), self._grown(values, more)) for keys, values in self.layers
            ]

    def _empty(self, like: Tensor, slots: int) -> Tensor:
        return like.new_empty((slots, like.shape[1], self.capacity, like.shape[3]))

    def _grown(self, old: Tensor, slots: int) -> Tensor:
        new = self._empty(old, slots)
        new[: len(old)] = old
        return new


class Place:
    """Where a sequence's keys and values are."""

    def __init__(self, slab: Slab, slot: int, length: int) -> None:
        self.slab = slab
        self.slot = slot
        self.length = length
        """Tokens of the sequence that are held."""


Held = Place | KVCache
"""The keys and values of a sequence that is being drawn."""


class Slabs:
    """The keys and values of all sequences that are drawn on one base model."""

    def __init__(self) -> None:
        self._slabs: dict[tuple[str | None, int], Slab] = {}
        """By adapter and capacity, so that sequences that decode together lie together."""

    def admit(self, adapter: str | None, cache: KVCache) -> Held:
        """Hold a sequence that goes on from a cache, which stays as it is."""
        if cache.length >= GREATEST_CAPACITY:
            return cache.fork()
        return self._slab(adapter, cache.length + 1).add(cache.layers(), cache.length)

    def with_room(self, adapter: str | None, held: Held) -> Held:
        """Have room for one more token; it may lie elsewhere then."""
        if isinstance(held, KVCache) or held.length < held.slab.capacity:
            return held
        layers, length = held.slab.held_by(held), held.length
        moved: Held
        if length >= GREATEST_CAPACITY:
            moved = KVCache.of(layers, length)
        else:
            moved = self._slab(adapter, length + 1).add(layers, length)
        self.release(held)
        return moved

    def release(self, held: Held) -> None:
        """Let go of a sequence."""
        if isinstance(held, Place):
            held.slab.remove(held)

    def _slab(self, adapter: str | None, length: int) -> Slab:
        key = adapter, capacity_for(length)
        for unused in [name for name, slab in self._slabs.items() if not slab.members]:
            if unused != key:
                del self._slabs[unused]
        return self._slabs.setdefault(key, Slab(key[1]))


class _Run(NamedTuple):
    """Sequences in slots next to each other."""

    slab: Slab
    places: list[Place]

    @property
    def slots(self) -> slice:
        return slice(self.places[0].slot, self.places[0].slot + len(self.places))


def in_runs(places: Iterable[Place]) -> Iterator[_Run]:
    """Places of a slab in the order of their slots, cut where a slot is missing."""
    run: list[Place] = []
    for place in places:
        if run and (place.slab is not run[0].slab or place.slot != run[-1].slot + 1):
            yield _Run(run[0].slab, run)
            run = []
        run.append(place)
    if run:
        yield _Run(run[0].slab, run)


def decoding_order(held: Held) -> tuple[int, int]:
    """A sort key by which the sequences of a tile come in few runs, those with caches of their
    own last. Only for sequences of one adapter."""
    if isinstance(held, Place):
        return held.slab.capacity, held.slot
    return GREATEST_CAPACITY + 1, 0


class DecodePlan:
    """One new token of each sequence, in `decoding_order`, and then those of another plan's rows:
    of `count` tokens that attend causally to themselves alone. Not differentiable."""

    def __init__(
        self, rows: Sequence[Held], dummies: int, new_cache: Callable[[], KVCache]
    ) -> None:
        places = [held for held in rows if isinstance(held, Place)]
        others = [(held, 1) for held in rows[len(places) :] if isinstance(held, KVCache)]
        if len(places) + len(others) != len(rows):
            raise ValueError("the rows are not in decoding order")
        if dummies:
            others.append((new_cache(), dummies))
        self._parts: list[tuple[Plan, int]] = [
            (_RunPlan(run), len(run.places)) for run in in_runs(places)
        ]
        if others:
            self._parts.append((CachedPlan(others), sum(count for _, count in others)))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """See `Plan.attend`."""
        counts = [count for _, count in self._parts]
        attended = [
            plan.attend(layer, q, k, v, rule)
            for (plan, _), q, k, v in zip(
                self._parts,
                torch.split(query, counts, dim=2),
                torch.split(key, counts, dim=2),
                torch.split(value, counts, dim=2),
                strict=True,
            )
        ]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)

    def finish(self) -> None:
        """Count the new tokens of every row."""
        for plan, _ in self._parts:
            plan.finish()


class _RunPlan:
    """One new token of each sequence of a run."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._lengths = torch.tensor([place.length for place in run.places])
        self._entries: dict[int, Tensor] = {}
        self._mask: Tensor | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """See `Plan.attend`."""
        run = self._run
        keys, values = run.slab.layers[layer]
        rows, heads = query.shape[2], query.shape[1]
        for held, new in ((keys, key), (values, value)):
            width = held.shape[3]
            lines = new[0].transpose(0, 1).reshape(-1, width)
            held.view(-1, width).index_copy_(0, self._lines(held), lines)
        if rule.window is not None or rule.softcap is not None or rule.sinks is not None:
            return self._attend_in_turn(query, keys[run.slots], values[run.slots], rule)
        # The heads of a group stand in for queries, which spares a repetition of the keys.
        grouped = query[0].transpose(0, 1).reshape(rows, keys.shape[1], -1, query.shape[3])
        attended = scaled_dot_product_attention(
            grouped,
            keys[run.slots],
            values[run.slots],
            attn_mask=self._unseen(query),
            scale=rule.scale,
        )
        return attended.reshape(1, rows, heads, values.shape[3])

    def _attend_in_turn(self, query: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        parts = [
            attend(
                query[:, :, row : row + 1],
                keys[row : row + 1, :, : place.length + 1],
                values[row : row + 1, :, : place.length + 1],
                rule,
            ).transpose(1, 2)
            for row, place in enumerate(self._run.places)
        ]
        return torch.cat(parts, dim=1)

    def _lines(self, held: Tensor) -> Tensor:
        """Where the new tokens' heads go, as rows of `held` with all but its width flattened."""
        _, heads, capacity, _ = held.shape
        if heads not in self._entries:
            slots = torch.arange(self._run.slots.start, self._run.slots.stop)
            of_heads = slots[:, None] * heads + torch.arange(heads)
            lines = of_heads * capacity + self._lengths[:, None]
            self._entries[heads] = lines.view(-1).to(held.device)
        return self._entries[heads]

    def _unseen(self, query: Tensor) -> Tensor:
        """0 where a sequence has tokens and -inf beyond, (rows, 1, 1, capacity)."""
        if self._mask is None:
            beyond = torch.arange(self._run.slab.capacity) > self._lengths[:, None]
            mask = torch.zeros(beyond.shape, dtype=query.dtype)
            mask.masked_fill_(beyond, float("-inf"))
            self._mask = mask[:, None, None].to(query.device)
        return self._mask

    def finish(self) -> None:
        """Count the new token of every row."""
        for place in self._run.places:
            place.length += 1
