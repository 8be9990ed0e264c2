"""Attention over sequences that lie end to end in one row.

`transformers` calls the function registered here (as "tinkergate") in every attention layer. What
it does with the row is said by the plan in force: `PackedPlan` for whole sequences without a cache,
`CachedPlan` for sequences that go on from their own `KVCache`. Attention is computed per sequence,
so there is no padding, and a sequence's numbers do not depend on its neighbours.

No mask is registered for "tinkergate", so `transformers` builds none: the plan is the mask.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from tinkergate.engine.threads import one_thread
from tinkergate.errors import GatewayError, unsupported

if TYPE_CHECKING:
    from tinkergate.engine.base import BaseModel

ATTENTION = "tinkergate"
"""The name under which `transformers` knows this attention function."""

_MIN_CAPACITY = 64

_WORTH_SHARING = 1 << 17
"""Numbers in the keys of one sequence and layer, from which on several threads attend faster."""

_WITHOUT_EFFECT = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position"}
)
"""What models pass on to the attention function and what changes nothing in its result here."""


class Rule(NamedTuple):
    """How one attention layer weighs keys, apart from which sequence they belong to."""

    scale: float | None = None
    """The factor on the dot products; None means 1 / sqrt(head width)."""
    window: int | None = None
    """How many keys back a query sees, itself included; None means all."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""
    sinks: Tensor | None = None
    """One logit a head that takes part in the softmax and adds nothing to the sum, (heads,)."""


class Plan(Protocol):
    """How the tokens of one forward pass belong together."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention of one layer. `query` is (1, heads, T, width), `key` and `value` are
        (1, key heads, T, width); answers (1, T, heads, width)."""

    def finish(self) -> None:
        """Called once, when the forward pass has succeeded."""


class PackedPlan:
    """Independent causal sequences of the given lengths, laid end to end."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """See `Plan.attend`. Differentiable."""
        del layer  # nothing is kept by layer
        # split, not slices: the gradient of n slices fills n zero tensors of the whole row.
        parts = zip(
            torch.split(query, self.lengths, dim=2),
            torch.split(key, self.lengths, dim=2),
            torch.split(value, self.lengths, dim=2),
            strict=True,
        )
        attended = [attend(q, k, v, rule).transpose(1, 2) for q, k, v in parts]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)

    def finish(self) -> None:
        """Nothing is kept."""


class KVCache:
    """Keys and values of one sequence, for every layer of a base model."""

    def __init__(self, base: BaseModel) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * base.num_layers
        self._shared = [False] * base.num_layers
        self.length = 0
        """Tokens in the cache."""

    def fork(self) -> KVCache:
        """A cache with the same tokens that goes on by itself. Memory is shared until either of
        the two appends."""
        twin = KVCache.__new__(KVCache)
        twin._layers = list(self._layers)
        self._shared = [True] * len(self._layers)
        twin._shared = [True] * len(self._layers)
        twin.length = self.length
        return twin

    @classmethod
    def of(cls, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> KVCache:
        """A cache with a copy of the first `length` tokens of each layer's keys and values."""
        cache = cls.__new__(cls)
        cache._layers = [(keys.clone(), values.clone()) for keys, values in layers]
        cache._shared = [False] * len(layers)
        cache.length = length
        return cache

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (1, key heads, at least `length`, width) of each layer of a cache that
        is not empty. To be read only."""
        return [layer for layer in self._layers if layer is not None]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (1, key heads, n, width) after the tokens there are; answers views of all of them.
        `length` is left alone: a pass counts only when all its layers are through."""
        start, end = self.length, self.length + key.shape[2]
        held = self._layers[layer]
        if held is None or self._shared[layer] or held[0].shape[2] < end:
            old_keys, old_values = held or (None, None)
            held = self._grown(old_keys, key, end), self._grown(old_values, value, end)
            self._layers[layer] = held
            self._shared[layer] = False
        keys, values = held
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        return keys[:, :, :end], values[:, :, :end]

    def append_token(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`append` for one token, (1, key heads, width)."""
        held = self._layers[layer]
        if held is None or self._shared[layer] or held[0].shape[2] == self.length:
            return self.append(layer, key.unsqueeze(2), value.unsqueeze(2))
        keys, values = held
        keys.select(2, self.length).copy_(key)
        values.select(2, self.length).copy_(value)
        return keys.narrow(2, 0, self.length + 1), values.narrow(2, 0, self.length + 1)

    def _grown(self, old: Tensor | None, like: Tensor, needed: int) -> Tensor:
        """A buffer for `needed` tokens or more, with those of `old`. Doubling a full one keeps the
        copying linear."""
        capacity = max(needed, _MIN_CAPACITY)
        if old is not None:
            present = old.shape[2]
            capacity = max(capacity, 2 * present if needed > present else present)
        _, heads, _, width = like.shape
        buffer = like.new_empty((1, heads, capacity, width))
        if old is not None:
            buffer[:, :, : self.length] = old[:, :, : self.length]
        return buffer


class CachedPlan:
    """Row i brings n_i new tokens, appended to its own cache, and attends to all of it causally.
    The caches move on when the forward pass has succeeded. Not differentiable."""

    def __init__(self, rows: Sequence[tuple[KVCache, int]]) -> None:
        self._caches = [cache for cache, _ in rows]
        self.lengths = [count for _, count in rows]
        if len({id(cache) for cache in self._caches}) != len(rows):
            raise ValueError("a cache may take part in one row of a plan only")
        more = [row for row, count in enumerate(self.lengths) if count != 1]
        self._singles = more[0] if more else len(rows)
        """How many rows, from the first on, bring one token."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """See `Plan.attend`."""
        simple = rule.window is None and rule.softcap is None and rule.sinks is None
        singles = self._singles if simple else 0
        attended = self._attend_singles(layer, query, key, value, rule.scale, singles)
        counts = self.lengths[singles:]
        for cache, q, k, v in zip(
            self._caches[singles:],
            torch.split(query[:, :, singles:], counts, dim=2),
            torch.split(key[:, :, singles:], counts, dim=2),
            torch.split(value[:, :, singles:], counts, dim=2),
            strict=True,
        ):
            keys, values = cache.append(layer, k, v)
            attended.append(attend(q, keys, values, rule).transpose(1, 2))
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)

    def _attend_singles(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        singles: int,
    ) -> list[Tensor]:
        """The first `singles` rows, of one token each, which sees everything: what `attend` does,
        with little around it. Decoding spends much of its time here."""
        heads, width = query.shape[1], value.shape[3]
        grouped = query.reshape(1, key.shape[1], -1, *query.shape[2:])
        longest = max((cache.length for cache in self._caches[:singles]), default=0)
        little = longest * key.shape[1] * key.shape[3] < _WORTH_SHARING
        with one_thread() if little else nullcontext():
            return [
                scaled_dot_product_attention(
                    q, *cache.append_token(layer, k, v), scale=scale
                ).reshape(1, 1, heads, width)
                for cache, q, k, v in zip(
                    self._caches[:singles],
                    grouped[:, :, :, :singles].unbind(3),
                    key[:, :, :singles].unbind(2),
                    value[:, :, :singles].unbind(2),
                    strict=True,
                )
            ]

    def finish(self) -> None:
        """Count the new tokens of every row."""
        for cache, count in zip(self._caches, self.lengths, strict=True):
            cache.length += count


def attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Causal attention within one sequence, of which the queries are the last tokens.

    `query` is (1, heads, n, width), `key` and `value` are (1, key heads, length, width) with
    n <= length; heads is a multiple of key heads (grouped queries). Answers (1, heads, n, width).
    """
    count, length = query.shape[2], key.shape[2]
    if rule.softcap is not None or rule.sinks is not None:
        return _attend_in_steps(query, key, value, rule)
    if rule.window is not None and length > rule.window:
        mask = _visible(count, length, rule.window, query.device)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=rule.scale, enable_gqa=True
        )
    if count == 1:
        # One query sees everything. The heads of a group stand in for queries, which spares a
        # repetition of the keys.
        grouped = query.reshape(1, key.shape[1], -1, query.shape[3])
        attended = scaled_dot_product_attention(grouped, key, value, scale=rule.scale)
        return attended.reshape(1, query.shape[1], 1, value.shape[3])
    if count == length:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=rule.scale, enable_gqa=True
        )
    mask = _visible(count, length, None, query.device)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=rule.scale, enable_gqa=True
    )


def _attend_in_steps(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Attention with what `scaled_dot_product_attention` does not know."""
    _, heads, count, width = query.shape
    length, group = key.shape[2], heads // key.shape[1]
    scale = width**-0.5 if rule.scale is None else rule.scale
    scores = query @ key.repeat_interleave(group, dim=1).transpose(2, 3) * scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores.masked_fill(~_visible(count, length, rule.window, query.device), float("-inf"))
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype).view(1, heads, 1, 1).expand(1, heads, count, 1)
        scores = torch.cat([scores, sinks], dim=3)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(value.dtype)
    return weights[..., :length] @ value.repeat_interleave(group, dim=1)


def _visible(count: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """Which of `length` keys each of the last `count` tokens sees, bool (count, length)."""
    seen = torch.ones(count, length, dtype=torch.bool, device=device).tril(length - count)
    return seen if window is None else seen.triu(length - count - window + 1)


_in_force = threading.local()


@contextmanager
def using(plan: Plan) -> Iterator[None]:
    """Put a plan in force for the forward passes of this thread."""
    outer = getattr(_in_force, "plan", None)
    _in_force.plan = plan
    try:
        yield
    finally:
        _in_force.plan = outer


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function in the form that `transformers` asks for."""
    plan: Plan | None = getattr(_in_force, "plan", None)
    if plan is None:
        raise RuntimeError("no attention plan is in force")
    if attention_mask is not None:
        raise _unknown("an attention mask of its own")
    if dropout:
        raise _unknown("attention dropout")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise _unknown("attention that is not causal")
    for name in others.keys() - _WITHOUT_EFFECT:
        if others[name] is not None:
            raise _unknown(f"the attention setting {name!r}")
    rule = Rule(scaling, sliding_window, softcap, s_aux)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return plan.attend(layer, query, key, value, rule), None


def _unknown(feature: str) -> GatewayError:
    return unsupported(f"base models with {feature}", "local")


AttentionInterface.register(ATTENTION, _attention)
