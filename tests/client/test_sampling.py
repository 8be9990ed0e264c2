from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tinkergate_client import (
    Client,
    InvalidRequest,
    NotFound,
    OperationCancelled,
    Sampler,
    Session,
    connect,
    supervised_datum,
)

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.create_session() as opened:
        yield opened


@pytest.fixture
def sampler(session: Session) -> Sampler:
    return session.create_sampler()


def test_sequences_come_with_their_logprobs(sampler: Sampler) -> None:
    result = sampler.sample(PROMPT, num_samples=3, max_tokens=6, seed=1, stop=[])
    assert len(result.sequences) == 3
    for sequence in result.sequences:
        assert sequence.tokens.shape == (6,)
        assert sequence.tokens.dtype == np.int32
        assert sequence.logprobs is not None
        assert sequence.logprobs.shape == (6,)
        assert (sequence.logprobs <= 0).all()
        assert sequence.stop_reason == "length"
        assert sequence.topk is None
    assert result.prompt_logprobs is None


def test_the_same_seed_gives_the_same_and_its_samples_differ(sampler: Sampler) -> None:
    one, two = (
        [
            s.tokens.tolist()
            for s in sampler.sample(PROMPT, num_samples=2, max_tokens=8, seed=5).sequences
        ]
        for _ in range(2)
    )
    assert one == two
    assert one[0] != one[1]


def test_the_prompt_can_be_asked_about(sampler: Sampler) -> None:
    targets = np.array([[6, 1], [7, -1], [8, 2], [9, 3]])
    result = sampler.sample(
        PROMPT,
        max_tokens=1,
        prompt_logprobs=True,
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
        target_prompt_logprobs=targets,
        prompt_alt_tokens_k=2,
    )
    assert result.prompt_logprobs is not None
    assert np.isnan(result.prompt_logprobs[0])
    assert result.topk_prompt_logprobs is not None
    assert result.topk_prompt_logprobs.tokens.shape == (5, 3)
    assert result.topk_prompt_logprobs.logprobs[0].tolist() == [-99999] * 3
    assert (np.diff(result.topk_prompt_logprobs.logprobs[1:], axis=1) <= 0).all()
    assert result.target_prompt_logprobs is not None
    np.testing.assert_allclose(
        result.target_prompt_logprobs[:, 0], result.prompt_logprobs[1:], atol=1e-4
    )
    assert result.target_prompt_logprobs[1, 1] == 0
    assert result.prompt_alt_tokens is not None
    assert result.prompt_alt_logprobs is not None
    assert result.prompt_alt_tokens.shape == result.prompt_alt_logprobs.shape == (4, 2)
    assert result.sequences[0].topk is not None
    assert result.sequences[0].topk.tokens.shape == (1, 2)


def test_stop_rules_may_be_text_or_tokens(sampler: Sampler) -> None:
    free = sampler.sample(PROMPT, max_tokens=12, temperature=0, stop=[]).sequences[0].tokens
    stop = int(free[3])
    result = sampler.sample(PROMPT, max_tokens=12, temperature=0, stop=[stop])
    stopped = result.sequences[0]
    assert stopped.stop_reason == "stop"
    assert stopped.tokens.tolist() == free[: free.tolist().index(stop) + 1].tolist()
    for text in ("zzz-never", ["zzz-never", "yyy-never"]):
        assert sampler.sample(PROMPT, max_tokens=2, stop=text).sequences


def test_a_stream_gives_each_sequence_once(sampler: Sampler) -> None:
    streamed = dict(sampler.stream(PROMPT, num_samples=4, max_tokens=8, seed=2))
    together = sampler.sample(PROMPT, num_samples=4, max_tokens=8, seed=2).sequences
    assert sorted(streamed) == [0, 1, 2, 3]
    for index, sequence in enumerate(together):
        assert streamed[index].tokens.tolist() == sequence.tokens.tolist()


def test_a_stream_may_be_left_early(sampler: Sampler) -> None:
    for _ in sampler.stream(PROMPT, num_samples=8, max_tokens=4):
        break
    assert sampler.sample(PROMPT, max_tokens=1).sequences


def test_a_call_can_be_given_up(sampler: Sampler) -> None:
    call = sampler.sample_later(PROMPT, num_samples=64, max_tokens=400, stop=[])
    if call.cancel():
        with pytest.raises(OperationCancelled):
            call.result()
    assert call.done()


def test_bad_requests_name_the_field(sampler: Sampler) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampler.sample(PROMPT, temperature=-1)
    assert caught.value.violations[0].field == "sampling_params.temperature"
    with pytest.raises(InvalidRequest):
        list(sampler.stream([]))
    with pytest.raises(ValueError, match=r"tokens\[0\] is -1"):
        sampler.sample([-1])


def test_a_sampler_of_a_training_model_is_frozen(session: Session) -> None:
    model = session.create_model(rank=4, seed=1)
    before = model.save_weights_for_sampler().result()
    assert before.sampler_id
    first = before.score([PROMPT])[0].logprobs
    model.forward_backward([supervised_datum(PROMPT, np.ones(5))])
    model.optim_step(learning_rate=1e-2)
    after = model.save_weights_for_sampler().result()
    np.testing.assert_array_equal(before.score([PROMPT])[0].logprobs, first)
    assert after.score([PROMPT])[0].logprobs[1:].sum() > first[1:].sum()


def test_a_named_sampler_is_a_checkpoint(session: Session, client: Client) -> None:
    model = session.create_model(rank=4, seed=1)
    sampler = model.save_weights_for_sampler("named").result()
    assert sampler.model_path == f"tinker://{model.model_id}/sampler_weights/named"
    assert not sampler.sampler_id
    again = session.create_sampler(model_path=sampler.model_path)
    straight = client.sampler(model_path=sampler.model_path)
    tokens = {
        tuple(each.sample(PROMPT, max_tokens=4, seed=1).sequences[0].tokens.tolist())
        for each in (sampler, again, straight)
    }
    assert len(tokens) == 1
    client.checkpoints.delete(sampler.model_path)


def test_a_base_model_needs_no_session(client: Client) -> None:
    name = client.capabilities().default_model
    assert client.sampler().base_model == name
    assert client.sampler(name).sample(PROMPT, max_tokens=1).sequences
    with pytest.raises(NotFound):
        client.sampler("no/such-model").sample(PROMPT, max_tokens=1)
    with pytest.raises(ValueError, match="give one of"):
        client.sampler(name, model_path="tinker://x/weights/y")


def test_programs_may_share_a_sampler(sampler: Sampler, gateway_process: Any) -> None:
    with connect(gateway_process.address) as other:
        shared = other.sampler(sampler_id=sampler.sampler_id)
        for each in (sampler, shared, sampler, shared):
            assert each.sample(PROMPT, max_tokens=1).sequences


def test_long_work_has_no_limit_of_the_gateways(start_gateway: Any) -> None:
    """A call without a deadline of its own would get so little that it cannot be done."""
    short = {"TINKERGATE_GRPC_DEFAULT_DEADLINE": "0.001"}
    gateway = start_gateway(environment=short)
    with connect(gateway.address) as client:
        result = client.sampler().sample(PROMPT, max_tokens=30, seed=1, stop=[])
        assert len(result.sequences[0].tokens) == 30
        (score,) = client.score([PROMPT * 40])
        assert score.logprobs.size == 200
