"""Drawing sequences: what comes out must depend on the request and nothing else."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tinkergate.engine.adapters import Adapters, LoraSpec
from tinkergate.engine.base import BaseModel
from tinkergate.engine.drawing import DrawRule
from tinkergate.engine.reading import STRETCH
from tinkergate.engine.sampler import Sampler, SamplerLimits
from tinkergate.engine.sampling import (
    PromptAnswers,
    PromptQuestions,
    Sampled,
    SampledTokens,
    SamplingEvents,
    SamplingRequest,
    Stops,
)
from tinkergate.engine.scheduler import Handle, Queue, Scheduler
from tinkergate.engine.scorer import Scorer, ScoringRequest
from tinkergate.errors import GatewayError, Kind

WAIT = 120.0
ADAPTER = "trained"


class Bench:
    """A base model with one adapter that is not the identity, and its lanes."""

    def __init__(self, folder: Path, limits: SamplerLimits | None = None) -> None:
        self.folder = folder
        self.base = BaseModel.load(folder)
        self.adapters = Adapters(self.base)
        self.adapters.create(ADAPTER, LoraSpec(rank=8, alpha=16, seed=1))
        generator = torch.Generator().manual_seed(2)
        for key, parameter in self.adapters.parameters(ADAPTER):
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.05, generator=generator)
        self.scheduler = Scheduler()
        self.sampler = Sampler(self.scheduler, self.base, self.adapters, limits)
        self.scorer = Scorer(self.scheduler, self.base, self.adapters)

    def submit(self, request: SamplingRequest, adapter: str | None = None) -> Handle[Sampled]:
        return self.sampler.submit(adapter, request)

    def draw(self, request: SamplingRequest, adapter: str | None = None) -> Sampled:
        return self.submit(request, adapter).future.result(WAIT)

    def score(
        self, tokens: np.ndarray[Any, Any], adapter: str | None, temperature: float
    ) -> np.ndarray[Any, Any]:
        request = ScoringRequest(tokens, np.array([len(tokens)]), temperature)
        return self.scorer.submit(adapter, request).future.result(WAIT).logprobs


@pytest.fixture(scope="module")
def bench(micro_model_dir: Path) -> Iterator[Bench]:
    bench = Bench(micro_model_dir)
    yield bench
    bench.scheduler.close()


def request(length: int = 6, count: int = 12, seed: int | None = 0, **more: Any) -> SamplingRequest:
    prompt = np.random.default_rng(length).integers(3, 500, length)
    more.setdefault("stops", Stops(eos=False))
    return SamplingRequest(prompt, max_tokens=count, seed=seed, **more)


def crowd(vocabulary: int, count: int) -> list[SamplingRequest]:
    """Requests of all sorts."""
    numbers = np.random.default_rng(count)
    return [
        SamplingRequest(
            numbers.integers(3, vocabulary, numbers.integers(1, 60)),
            num_samples=int(numbers.integers(1, 4)),
            max_tokens=int(numbers.integers(1, 50)),
            seed=int(numbers.integers(0, 2**60)),
            rule=DrawRule(float(numbers.choice([0.0, 0.7, 1.0]))),
            stops=Stops(eos=False),
        )
        for _ in range(count)
    ]


def same(one: Sampled, other: Sampled) -> None:
    for a, b in zip(one.sequences, other.sequences, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.logprobs.tobytes() == b.logprobs.tobytes()
        assert a.stopped == b.stopped


def check_independence(bench: Bench, length: int, count: int, others: int) -> None:
    """The same requests alone and among others of the same and of another adapter."""
    for adapter in (None, ADAPTER):
        wanted = request(length, count, seed=5, num_samples=2)
        alone = bench.draw(wanted, adapter)
        around = crowd(bench.base.vocab_size, others)
        half = len(around) // 2
        handles = [bench.submit(r, adapter) for r in around[:half]]
        beside = bench.submit(wanted, adapter)
        handles += [
            bench.submit(r, name) for r in around[half:] for name in (adapter, ADAPTER, None)
        ]
        same(alone, beside.future.result(WAIT))
        for handle in handles:
            handle.future.result(WAIT)


@pytest.mark.parametrize(("length", "count"), [(17, 200), (100, 20), (STRETCH + 30, 20)])
def test_tokens_and_logprobs_do_not_depend_on_what_else_runs(
    bench: Bench, length: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.base, "max_context", 2 * STRETCH)
    check_independence(bench, length, count, others=20)


@pytest.mark.slow
def test_many_short_prompts_that_end_in_one_pass_are_as_each_alone(bench: Bench) -> None:
    wanted = [request(3, 4, seed=seed) for seed in range(60)]
    alone = [bench.draw(each, ADAPTER) for each in wanted]

    # Something long first, so that the others have all arrived when their turn comes.
    first = bench.submit(request(100, 20), ADAPTER)
    handles = [bench.submit(each, ADAPTER) for each in wanted]

    for one, handle in zip(alone, handles, strict=True):
        same(one, handle.future.result(WAIT))
    first.future.result(WAIT)


def test_the_same_on_the_default_model(default_model_dir: Path) -> None:
    bench = Bench(default_model_dir)
    try:
        check_independence(bench, 17, count=16, others=4)
    finally:
        bench.scheduler.close()


def test_same_seed_same_tokens_and_the_samples_of_a_request_differ(bench: Bench) -> None:
    first, second = (bench.draw(request(seed=9, num_samples=6, count=20)) for _ in range(2))
    same(first, second)
    assert len({tuple(sequence.tokens.tolist()) for sequence in first.sequences}) == 6
    # A sample is that of its index, however many are drawn.
    fewer = bench.draw(request(seed=9, num_samples=2, count=20))
    for a, b in zip(fewer.sequences, first.sequences, strict=False):
        assert a.tokens.tolist() == b.tokens.tolist()
    other = bench.draw(request(seed=10, count=20))
    assert other.sequences[0].tokens.tolist() != first.sequences[0].tokens.tolist()
    unseeded = [bench.draw(request(seed=None, count=20)).sequences[0] for _ in range(2)]
    assert unseeded[0].tokens.tolist() != unseeded[1].tokens.tolist()


@pytest.mark.parametrize("adapter", [None, ADAPTER])
@pytest.mark.parametrize(
    "rule",
    [DrawRule(), DrawRule(0.0), DrawRule(0.5, top_p=0.8), DrawRule(1.5, top_k=30, top_p=0.9)],
)
def test_logprobs_of_sampled_tokens_are_those_of_scoring(
    bench: Bench, rule: DrawRule, adapter: str | None
) -> None:
    wanted = request(11, 40, seed=3, rule=rule)
    [drawn] = bench.draw(wanted, adapter).sequences
    whole = np.concatenate([wanted.prompt, drawn.tokens])
    scores = bench.score(whole, adapter, rule.logprob_temperature)
    np.testing.assert_allclose(drawn.logprobs, scores[11:], atol=1e-4)


def test_greedy_is_what_transformers_generates(bench: Bench) -> None:
    wanted = request(9, 30, rule=DrawRule(0.0))
    model = AutoModelForCausalLM.from_pretrained(bench.folder).eval()
    prompt = torch.from_numpy(wanted.prompt)[None]
    with torch.no_grad():
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=30,
            min_new_tokens=30,
            pad_token_id=0,
            eos_token_id=None,
        )
    [drawn] = bench.draw(wanted).sequences
    assert drawn.tokens.tolist() == generated[0, 9:].tolist()


def test_the_likeliest_of_sampled_positions_hold_for_any_k(bench: Bench) -> None:
    for k in (1, 5, bench.base.vocab_size):
        [drawn] = bench.draw(request(count=4, rule=DrawRule(0.7), topk=k)).sequences
        assert drawn.topk is not None
        assert drawn.topk.ids.shape == drawn.topk.logprobs.shape == (4, k)
        assert drawn.topk.ids.dtype == np.int32
        for place in range(4):
            ids, values = drawn.topk.ids[place].tolist(), drawn.topk.logprobs[place].tolist()
            ranks = [(-value, token) for value, token in zip(values, ids, strict=True)]
            assert ranks == sorted(ranks)
            assert len(set(ids)) == k
            if k == bench.base.vocab_size:
                assert np.exp(values).sum() == pytest.approx(1, abs=1e-4)
                where = ids.index(drawn.tokens[place])
                assert values[where] == pytest.approx(drawn.logprobs[place], abs=1e-6)


def reference_logprobs(bench: Bench, tokens: np.ndarray[Any, Any]) -> torch.Tensor:
    """Row i: the logprobs of all tokens at position i + 1, by the model's own code."""
    model = AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0]
    return logits.double().log_softmax(-1)[:-1]


@pytest.mark.parametrize("length", [1, 2, 40, STRETCH, 2 * STRETCH + 70])
def test_prompt_answers_are_those_of_an_independent_forward(
    bench: Bench, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.base, "max_context", 4 * STRETCH)
    numbers = np.random.default_rng(length)
    vocabulary = bench.base.vocab_size
    targets = numbers.integers(-1, vocabulary, (length - 1, 3))
    questions = PromptQuestions(logprobs=True, topk=7, targets=targets, alternatives=2)
    wanted = request(length, 1, questions=questions)
    told: list[PromptAnswers] = []
    handle = bench.sampler.submit(None, wanted, SamplingEvents(on_prompt=told.append))
    answers = handle.future.result(WAIT).prompt
    assert told == [answers]
    expected = reference_logprobs(bench, wanted.prompt)
    assert answers.logprobs is not None
    assert answers.topk is not None
    assert answers.targets is not None
    assert answers.alternatives is not None
    assert answers.logprobs.shape == (length,)
    assert np.isnan(answers.logprobs[0])
    own = expected[torch.arange(length - 1), torch.from_numpy(wanted.prompt[1:])].numpy()
    np.testing.assert_allclose(answers.logprobs[1:], own, atol=1e-4)
    assert answers.topk.ids.shape == (length - 1, 7)
    np.testing.assert_allclose(answers.topk.logprobs, expected.topk(7).values, atol=1e-4)
    chosen = np.take_along_axis(expected.numpy(), targets.clip(0), axis=1)
    np.testing.assert_allclose(answers.targets, np.where(targets < 0, 0, chosen), atol=1e-4)
    drawn = answers.alternatives
    assert drawn.tokens.shape == (length - 1, 2)
    of_drawn = np.take_along_axis(expected.numpy(), drawn.tokens, axis=1)
    np.testing.assert_allclose(drawn.logprobs, of_drawn, atol=1e-4)


def test_prompt_logprobs_of_the_last_positions_only(bench: Bench) -> None:
    every = bench.draw(request(20, 1, questions=PromptQuestions(logprobs=True))).prompt.logprobs
    last = bench.draw(
        request(20, 1, questions=PromptQuestions(logprobs=True, last_n=4))
    ).prompt.logprobs
    assert every is not None
    assert last is not None
    assert np.isnan(last[:16]).all()
    np.testing.assert_allclose(last[16:], every[16:], atol=1e-6)


def test_alternatives_are_drawn_at_the_temperature_and_from_the_seed(bench: Bench) -> None:
    def alternatives(seed: int, temperature: float) -> np.ndarray[Any, Any]:
        drawn = bench.draw(
            request(
                30,
                1,
                seed=seed,
                rule=DrawRule(temperature),
                questions=PromptQuestions(alternatives=4),
            )
        ).prompt.alternatives
        assert drawn is not None
        return drawn.tokens

    assert alternatives(1, 1.0).tolist() == alternatives(1, 1.0).tolist()
    assert alternatives(1, 1.0).tolist() != alternatives(2, 1.0).tolist()
    likeliest = reference_logprobs(bench, request(30).prompt).argmax(-1)
    for column in alternatives(1, 0.0).T:
        assert column.tolist() == likeliest.tolist()


def test_max_tokens_and_the_end_of_the_context_end_a_sequence(bench: Bench) -> None:
    [drawn] = bench.draw(request(5, 3)).sequences
    assert (len(drawn.tokens), drawn.stopped) == (3, False)
    context = bench.base.max_context
    for asked in (None, 1000):
        wanted = dataclasses.replace(request(context - 4), max_tokens=asked)
        [drawn] = bench.draw(wanted).sequences
        assert (len(drawn.tokens), drawn.stopped) == (4, False)
    [drawn] = bench.draw(request(context, 5)).sequences
    assert (len(drawn.tokens), drawn.stopped) == (0, False)


def test_stop_tokens_end_a_sequence_and_are_part_of_it(bench: Bench) -> None:
    [free] = bench.draw(request(count=20, seed=4)).sequences
    end = int(free.tokens[8])
    first = free.tokens.tolist().index(end)
    [drawn] = bench.draw(
        request(count=20, seed=4, stops=Stops(eos=False, tokens=frozenset([end])))
    ).sequences
    assert drawn.stopped
    assert drawn.tokens.tolist() == free.tokens[: first + 1].tolist()


def test_the_models_own_end_counts_unless_it_is_switched_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    [free] = bench.draw(request(count=20, seed=4)).sequences
    end = int(free.tokens[5])
    first = free.tokens.tolist().index(end)
    monkeypatch.setattr(bench.base, "eos_token_ids", frozenset([end]))
    for stops in (Stops(), Stops(tokens=frozenset([1])), Stops(strings=("never to be seen",))):
        [drawn] = bench.draw(request(count=20, seed=4, stops=stops)).sequences
        assert drawn.stopped
        assert len(drawn.tokens) == first + 1
    [drawn] = bench.draw(request(count=20, seed=4, stops=Stops(eos=False))).sequences
    assert len(drawn.tokens) == 20


def test_a_stop_string_ends_a_sequence_with_the_token_that_completes_it(bench: Bench) -> None:
    [free] = bench.draw(request(count=30, seed=8)).sequences
    decode = bench.base.tokenizer.decode
    texts = [decode(free.tokens[: n + 1]) for n in range(30)]
    # A text across tokens 10 to 14, and the first place where it is whole.
    wanted = texts[14][len(texts[9]) + 1 :]
    end = next(n for n, text in enumerate(texts) if wanted in text)
    stops = Stops(eos=False, strings=("absent", wanted))
    [drawn] = bench.draw(request(count=30, seed=8, stops=stops)).sequences
    assert drawn.stopped
    assert drawn.tokens.tolist() == free.tokens[: end + 1].tolist()


def test_each_sequence_is_reported_as_it_finishes(bench: Bench) -> None:
    told: list[tuple[int, SampledTokens]] = []
    events = SamplingEvents(on_sequence=lambda index, sequence: told.append((index, sequence)))
    sampled = bench.sampler.submit(None, request(num_samples=5), events).future.result(WAIT)
    assert sorted(index for index, _ in told) == list(range(5))
    for index, sequence in told:
        assert sampled.sequences[index] is sequence


def test_cancelling_frees_the_rows_and_leaves_the_others(bench: Bench) -> None:
    expected = bench.draw(request(seed=1, count=30))
    running = threading.Event()
    events = SamplingEvents(on_prompt=lambda _: running.set())
    endless = bench.sampler.submit(
        None,
        request(count=400, num_samples=20, questions=PromptQuestions(logprobs=True)),
        events,
    )
    other = bench.submit(request(seed=1, count=30))
    assert running.wait(WAIT)
    assert endless.cancel()
    with pytest.raises(GatewayError) as caught:
        endless.future.result(WAIT)
    assert caught.value.kind is Kind.CANCELLED
    assert not endless.cancel()
    same(other.future.result(WAIT), expected)
    assert bench.sampler._sequences == []


def test_an_error_ends_its_own_request_only(bench: Bench) -> None:
    def fail(*_: object) -> None:
        raise ValueError("the listener is gone")

    expected = bench.draw(request(seed=1))
    broken = bench.sampler.submit(None, request(count=2), SamplingEvents(on_sequence=fail))
    other = bench.submit(request(seed=1))
    with pytest.raises(ValueError, match="listener"):
        broken.future.result(WAIT)
    with pytest.raises(ValueError, match="no adapter"):
        bench.draw(request(), "unknown")
    same(other.future.result(WAIT), expected)


def test_weights_that_have_diverged_are_reported(bench: Bench) -> None:
    bench.adapters.create("diverged", LoraSpec(rank=1, alpha=1))
    for key, parameter in bench.adapters.parameters("diverged"):
        if "lora_B" in key:
            torch.nn.init.constant_(parameter, float("nan"))
    with pytest.raises(GatewayError, match="not finite"):
        bench.draw(request(), "diverged")
    bench.adapters.delete("diverged")


def test_what_is_beyond_the_limits_waits_its_turn(micro_model_dir: Path) -> None:
    """With room for three sequences, or for next to no memory, everything comes out the same."""
    wanted = [request(length, 10, seed=length, num_samples=3) for length in (3, 30, 9)]
    outcomes = []
    for limits in (
        SamplerLimits(),
        SamplerLimits(max_sequences=3),
        SamplerLimits(cache_bytes=1),
    ):
        bench = Bench(micro_model_dir, limits)
        most = 0
        original = bench.sampler._decode

        def watch(tile: Any, original: Any = original, bench: Bench = bench) -> None:
            nonlocal most
            most = max(most, len(bench.sampler._sequences))
            original(tile)

        bench.sampler._decode = watch  # type: ignore[method-assign]
        handles = [bench.submit(r) for r in wanted]
        outcomes.append([handle.future.result(WAIT) for handle in handles])
        bench.scheduler.close()
        assert most <= (limits.max_sequences if limits.cache_bytes > 1 else 1)
    for outcome in outcomes[1:]:
        for one, other in zip(outcomes[0], outcome, strict=True):
            same(one, other)


def test_other_work_goes_on_while_a_long_sample_runs(bench: Bench) -> None:
    """The long sample cannot be done before the short work: it is cancelled after it."""
    queue = Queue(bench.scheduler, "training")
    long = bench.submit(request(count=500, num_samples=64))
    for _ in range(5):
        assert queue.call(lambda: "done").future.result(WAIT) == "done"
    short = bench.draw(request(count=2))
    assert len(short.sequences[0].tokens) == 2
    assert long.cancel()
    with pytest.raises(GatewayError):
        long.future.result(WAIT)


def test_closing_ends_what_is_running(micro_model_dir: Path) -> None:
    bench = Bench(micro_model_dir)
    handle = bench.submit(request(count=500, num_samples=64))
    bench.scheduler.close()
    with pytest.raises(GatewayError) as caught:
        handle.future.result(0)
    assert caught.value.kind is Kind.UNAVAILABLE
    with pytest.raises(GatewayError):
        bench.submit(request())
