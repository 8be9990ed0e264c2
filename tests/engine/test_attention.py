"""Plans and caches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tinkergate.engine.attention import CachedPlan, KVCache, PackedPlan, Rule, attend
from tinkergate.engine.base import BaseModel


@pytest.fixture(scope="module")
def base(micro_model_dir: Path) -> BaseModel:
    return BaseModel.load(micro_model_dir)


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(512, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(base: BaseModel, sequence: Tensor) -> Tensor:
    count = len(sequence)
    return base.hidden(sequence, torch.arange(count), PackedPlan([count]))


@torch.no_grad()
def go_on(base: BaseModel, rows: list[tuple[KVCache, Tensor]]) -> Tensor:
    positions = [torch.arange(cache.length, cache.length + len(new)) for cache, new in rows]
    plan = CachedPlan([(cache, len(new)) for cache, new in rows])
    return base.hidden(torch.cat([new for _, new in rows]), torch.cat(positions), plan)


def test_prefill_and_decoding_equal_a_whole_pass(base: BaseModel) -> None:
    sequences = [tokens(count, count) for count in (150, 1, 70, 33)]
    caches = [KVCache(base) for _ in sequences]
    seen: list[list[Tensor]] = [[] for _ in sequences]
    # Pieces of uneven sizes, over the growth of the caches, and then one token at a time.
    for start, end in [(0, 1), (1, 30), (30, 33), *((at, at + 1) for at in range(33, 150))]:
        rows = [
            (cache, sequence[start:end], place)
            for place, (cache, sequence) in enumerate(zip(caches, sequences, strict=True))
            if len(sequence) > start
        ]
        states = go_on(base, [(cache, new) for cache, new, _ in rows])
        for part, (_, _, place) in zip(
            states.split([len(new) for _, new, _ in rows]), rows, strict=True
        ):
            seen[place].append(part)
    for sequence, parts, cache in zip(sequences, seen, caches, strict=True):
        assert cache.length == len(sequence)
        assert (torch.cat(parts) - whole(base, sequence)).abs().max() < 1e-5


def test_forks_go_on_by_themselves(base: BaseModel) -> None:
    prompt = tokens(90, 0)
    cache = KVCache(base)
    go_on(base, [(cache, prompt)])
    forks = [cache.fork() for _ in range(3)]
    endings = [tokens(20, seed) for seed in (1, 2, 3)]
    for fork, ending in zip(forks, endings, strict=True):
        go_on(base, [(fork, ending[:19])])
    last = go_on(base, [(f, e[19:]) for f, e in zip(forks, endings, strict=True)])
    for state, ending in zip(last, endings, strict=True):
        expected = whole(base, torch.cat([prompt, ending]))[-1]
        assert (state - expected).abs().max() < 1e-5
    # The original goes on too, from where it was.
    assert cache.length == 90
    other = tokens(5, 4)
    expected = whole(base, torch.cat([prompt, other]))[-5:]
    assert (go_on(base, [(cache, other)]) - expected).abs().max() < 1e-5


def test_forks_share_memory_until_they_append(base: BaseModel) -> None:
    cache = KVCache(base)
    go_on(base, [(cache, tokens(90, 0))])
    fork = cache.fork()
    held = [layer[0].data_ptr() for layer in cache._layers if layer]
    assert held == [layer[0].data_ptr() for layer in fork._layers if layer]
    go_on(base, [(fork, tokens(1, 1))])
    assert held == [layer[0].data_ptr() for layer in cache._layers if layer]
    assert all(layer[0].data_ptr() not in held for layer in fork._layers if layer)


def test_growing_a_cache_copies_rarely(base: BaseModel) -> None:
    cache = KVCache(base)
    buffers = set()
    for count in range(300):
        go_on(base, [(cache, tokens(1, count))])
        buffers.add(cache._layers[0][0].shape[2] if cache._layers[0] else 0)
    assert buffers == {64, 128, 256, 512}


def test_a_failed_pass_does_not_move_the_caches(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, more = tokens(10, 0), tokens(3, 1)
    cache = KVCache(base)
    go_on(base, [(cache, prompt)])

    def fail(*_: object) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(base.decoder.norm, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            go_on(base, [(cache, tokens(7, 2))])
    assert cache.length == 10
    expected = whole(base, torch.cat([prompt, more]))[-3:]
    assert (go_on(base, [(cache, more)]) - expected).abs().max() < 1e-5


def test_a_cache_cannot_be_in_two_rows(base: BaseModel) -> None:
    cache = KVCache(base)
    with pytest.raises(ValueError, match="one row"):
        CachedPlan([(cache, 1), (cache, 1)])


def test_a_pass_without_a_plan_is_a_mistake(base: BaseModel) -> None:
    with pytest.raises(RuntimeError, match="no attention plan"):
        base.hf(torch.arange(3)[None])


def by_the_book(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """Attention in float64, one query of one head at a time."""
    heads, count, width = q.shape[1:]
    length, group = k.shape[2], heads // k.shape[1]
    out = torch.zeros(1, heads, count, v.shape[3], dtype=torch.float64)
    for head in range(heads):
        for query in range(count):
            at = length - count + query
            first = 0 if rule.window is None else max(0, at - rule.window + 1)
            keys = k[0, head // group, first : at + 1].double()
            scores = keys @ q[0, head, query].double() * (rule.scale or width**-0.5)
            if rule.softcap is not None:
                scores = rule.softcap * torch.tanh(scores / rule.softcap)
            weights = scores.exp()
            total = weights.sum()
            if rule.sinks is not None:
                total = total + rule.sinks[head].double().exp()
            out[0, head, query] = weights / total @ v[0, head // group, first : at + 1].double()
    return out


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 9), (9, 9), (4, 9)])
@pytest.mark.parametrize(
    "rule",
    [
        Rule(),
        Rule(scale=0.3),
        Rule(window=3),
        Rule(window=9),
        Rule(softcap=1.5),
        Rule(softcap=1.5, window=3, scale=0.7),
        Rule(sinks=torch.linspace(-1, 2, 4)),
        Rule(sinks=torch.linspace(-1, 2, 4), window=4),
    ],
    ids=str,
)
def test_attention_by_the_book(rule: Rule, count: int, length: int) -> None:
    generator = torch.Generator().manual_seed(count * length)
    q = torch.randn(1, 4, count, 8, generator=generator)
    k, v = (torch.randn(1, 2, length, 8, generator=generator) for _ in range(2))
    assert (attend(q, k, v, rule) - by_the_book(q, k, v, rule)).abs().max() < 1e-6
