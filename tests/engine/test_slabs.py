"""Sequences side by side in slabs: the same numbers as each alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tinkergate.engine.attention import CachedPlan, KVCache, Rule, attend
from tinkergate.engine.base import BaseModel
from tinkergate.engine.slabs import (
    GREATEST_CAPACITY,
    LEAST_CAPACITY,
    DecodePlan,
    Held,
    Place,
    Slabs,
    capacity_for,
    decoding_order,
)

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
LAYERS = 2
RULES = [Rule(), Rule(scale=0.3), Rule(window=5), Rule(softcap=2.0), Rule(sinks=torch.ones(HEADS))]


class Recorded:
    """A sequence, with all its keys and values beside where they are held."""

    def __init__(self, base: BaseModel, slabs: Slabs, length: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        cache = KVCache(base)
        self.keys, self.values = [], []
        for layer in range(LAYERS):
            keys, values = self.rows(length), self.rows(length)
            cache.append(layer, keys, values)
            self.keys.append(keys)
            self.values.append(values)
        cache.length = length
        self.held: Held = slabs.admit(None, cache)

    def rows(self, count: int, heads: int = KEY_HEADS) -> Tensor:
        return torch.randn(1, heads, count, WIDTH, generator=self.generator)


def decode(
    base: BaseModel, slabs: Slabs, sequences: list[Recorded], rule: Rule, dummies: int = 0
) -> list[Tensor]:
    """One step of all sequences; answers each one's attention in every layer, and checks it
    against attention over the recorded keys and values."""
    for sequence in sequences:
        sequence.held = slabs.with_room(None, sequence.held)
    sequences = sorted(sequences, key=lambda sequence: decoding_order(sequence.held))
    plan = DecodePlan([sequence.held for sequence in sequences], dummies, lambda: KVCache(base))
    answers: list[list[Tensor]] = [[] for _ in sequences]
    for layer in range(LAYERS):
        parts = [
            (sequence.rows(1, HEADS), sequence.rows(1), sequence.rows(1)) for sequence in sequences
        ]
        if dummies:
            parts.append(tuple(torch.zeros(1, n, dummies, WIDTH) for n in (HEADS, 2, 2)))  # type: ignore[arg-type]
        query, key, value = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
        attended = plan.attend(layer, query, key, value, rule)
        for row, (sequence, (q, k, v)) in enumerate(zip(sequences, parts, strict=False)):
            sequence.keys[layer] = torch.cat([sequence.keys[layer], k], dim=2)
            sequence.values[layer] = torch.cat([sequence.values[layer], v], dim=2)
            expected = attend(q, sequence.keys[layer], sequence.values[layer], rule)
            torch.testing.assert_close(
                attended[:, row : row + 1], expected.transpose(1, 2), rtol=1e-5, atol=1e-6
            )
            answers[row].append(attended[0, row])
    plan.finish()
    order = {
        id(sequence): torch.stack(found) for sequence, found in zip(sequences, answers, strict=True)
    }
    return [order[id(sequence)] for sequence in sequences]


@pytest.fixture(scope="module")
def base(micro_model_dir: Path) -> BaseModel:
    return BaseModel.load(micro_model_dir)


@pytest.fixture
def slabs() -> Slabs:
    return Slabs()


@pytest.mark.parametrize(
    ("length", "capacity"),
    [(1, 64), (64, 64), (65, 128), (128, 128), (129, 256), (1000, 1024), (1024, 1024)],
)
def test_the_capacity_follows_from_the_length(length: int, capacity: int) -> None:
    assert capacity_for(length) == capacity


@pytest.mark.parametrize("rule", RULES)
def test_attention_is_that_over_each_ones_own_tokens(
    base: BaseModel, slabs: Slabs, rule: Rule
) -> None:
    lengths = [3, 63, 64, 70, 127, 128, 300, GREATEST_CAPACITY - 1, GREATEST_CAPACITY + 5]
    sequences = [Recorded(base, slabs, n, seed) for seed, n in enumerate(lengths)]
    for _ in range(3):
        decode(base, slabs, sequences, rule, dummies=4)
    assert [sequence.held.length for sequence in sequences] == [n + 3 for n in lengths]
    kinds = [type(sequence.held) for sequence in sequences]
    assert kinds == [Place] * 7 + [KVCache] * 2  # the longest but one outgrew the slabs


def test_a_row_is_the_same_to_the_bit_whatever_lies_beside_it(base: BaseModel) -> None:
    alone = Slabs()
    expected = [decode(base, alone, [one], Rule()) for one in [Recorded(base, alone, 70, 1)]]
    for neighbours in ([71], [5, 66, 80, 127], [100] * 20):
        slabs = Slabs()
        others = [Recorded(base, slabs, n, 100 + k) for k, n in enumerate(neighbours)]
        one = Recorded(base, slabs, 70, 1)
        sequences = sorted([*others[1:], one, others[0]], key=lambda s: decoding_order(s.held))
        found = decode(base, slabs, sequences, Rule())
        assert torch.equal(found[sequences.index(one)], expected[0][0])


def test_who_leaves_makes_room_and_harms_nobody(base: BaseModel, slabs: Slabs) -> None:
    sequences = [Recorded(base, slabs, 10 + n, n) for n in range(5)]
    for _ in range(4):
        slabs.release(sequences.pop(0).held)  # the last moves into the slot
        decode(base, slabs, sequences, Rule())
    [last] = sequences
    assert isinstance(last.held, Place)
    assert last.held.slot == 0
    newcomer = Recorded(base, slabs, 20, 50)
    decode(base, slabs, [last, newcomer], Rule())


def test_what_a_diverged_model_left_in_a_slot_does_not_reach_the_next(
    base: BaseModel, slabs: Slabs
) -> None:
    keeper = Recorded(base, slabs, 10, 0)
    diverged = Recorded(base, slabs, 40, 1)
    assert isinstance(diverged.held, Place)
    for keys, values in diverged.held.slab.held_by(diverged.held):
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    slabs.release(diverged.held)
    after = Recorded(base, slabs, 10, 2)
    decode(base, slabs, [keeper, after], Rule())
    slabs.release(keeper.held)
    decode(base, slabs, [after], Rule())


def test_a_slab_that_nobody_is_in_holds_no_memory(base: BaseModel, slabs: Slabs) -> None:
    one = Recorded(base, slabs, 10, 0)
    assert isinstance(one.held, Place)
    slab = one.held.slab
    slabs.release(one.held)
    assert slab.layers == []
    assert slab.members == []


def test_adapters_lie_apart(base: BaseModel, slabs: Slabs) -> None:
    def admitted(adapter: str | None) -> Held:
        cache = KVCache(base)
        for layer in range(LAYERS):
            cache.append(layer, torch.zeros(1, 2, 3, WIDTH), torch.zeros(1, 2, 3, WIDTH))
        cache.length = 3
        return slabs.admit(adapter, cache)

    first, second, third = admitted(None), admitted("a"), admitted(None)
    assert isinstance(first, Place)
    assert isinstance(second, Place)
    assert isinstance(third, Place)
    assert first.slab is third.slab is not second.slab
    assert first.slab.capacity == LEAST_CAPACITY


def test_rows_out_of_order_are_a_fault(base: BaseModel, slabs: Slabs) -> None:
    long = Recorded(base, slabs, GREATEST_CAPACITY + 1, 0)
    short = Recorded(base, slabs, 3, 1)
    with pytest.raises(ValueError, match="decoding order"):
        DecodePlan([long.held, short.held], 0, lambda: KVCache(base))


def test_a_forward_pass_through_slabs_gives_the_logits_of_one_through_caches(
    base: BaseModel, slabs: Slabs
) -> None:
    def read(tokens: Tensor) -> KVCache:
        cache = KVCache(base)
        base.hidden(tokens, torch.arange(len(tokens)), CachedPlan([(cache, len(tokens))]))
        return cache

    def step(plan: Any, tokens: Tensor, positions: Tensor) -> Tensor:
        return base.logits(base.hidden(tokens, positions, plan))

    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        prompts = [torch.randint(base.vocab_size, (n,), generator=generator) for n in (5, 62, 64)]
        caches = [read(prompt) for prompt in prompts]
        held = [slabs.admit(None, cache) for cache in caches]
        for position in range(4):
            tokens = torch.randint(base.vocab_size, (3,), generator=generator)
            positions = torch.tensor([len(prompt) + position for prompt in prompts])
            expected = step(CachedPlan([(cache, 1) for cache in caches]), tokens, positions)
            held = [slabs.with_room(None, one) for one in held]
            order = sorted(range(3), key=lambda row: decoding_order(held[row]))
            plan = DecodePlan([held[row] for row in order], 0, lambda: KVCache(base))
            logits = step(plan, tokens[order], positions[order])
            torch.testing.assert_close(logits, expected[order], rtol=1e-4, atol=1e-4)
