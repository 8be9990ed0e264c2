"""What programs may rely on, over the wire, on a real (micro) model in a gateway process."""

from __future__ import annotations

import numpy as np
import pytest

from tinkergate import v1
from tinkergate_client import Conflict, InvalidRequest, connect, datum

VOCAB_SIZE = 512


@pytest.fixture
def client(gateway_process):
    with connect(gateway_process.address) as client:
        yield client


def batch(seed: int, lengths=(9, 31, 17)):
    """Datums of random tokens and weights, some of them negative."""
    draw = np.random.default_rng(seed)
    return [
        datum(
            draw.integers(3, VOCAB_SIZE, length),
            draw.integers(3, VOCAB_SIZE, length),
            draw.normal(1.0, 1.0, length),
        )
        for length in lengths
    ]


def train(model, seeds, **settings):
    """Pipelined steps; answers the losses."""
    losses = []
    for seed in seeds:
        losses.append(model.forward_backward(batch(seed)))
        model.optim_step(learning_rate=1e-2, **settings)
    return [loss.result().loss for loss in losses]


def logprobs(model):
    """What the model says of a fixed batch."""
    return np.concatenate(model.forward(batch(99)).result().logprobs)


def test_seq_ids_in_any_order_run_in_theirs(client):
    with client.create_session() as session:
        ordered, shuffled = (session.create_model(rank=4, seed=7) for _ in range(2))
        data = batch(0)
        for _ in range(2):
            ordered.forward_backward(data)
            ordered.optim_step(learning_rate=1e-2)

        stub = client._connection.training
        requests = {
            seq_id: v1.ForwardBackwardRequest(
                model_id=shuffled.model_id, seq_id=seq_id, data=data, loss_fn="cross_entropy"
            )
            if seq_id % 2
            else v1.OptimStepRequest(
                model_id=shuffled.model_id, seq_id=seq_id, adam=v1.AdamParams(learning_rate=1e-2)
            )
            for seq_id in (1, 2, 3, 4)
        }
        names = {}
        for seq_id in (2, 3, 1, 4, 3, 2):  # the last two are repeats
            request = requests[seq_id]
            send = stub.ForwardBackward if seq_id % 2 else stub.OptimStep
            operation = client._connection.call(send, request)
            assert names.setdefault(seq_id, operation.name) == operation.name
        other = v1.OptimStepRequest()
        other.CopyFrom(requests[2])
        other.adam.learning_rate = 1.0
        with pytest.raises(Conflict) as caught:
            client._connection.call(stub.OptimStep, other)
        assert caught.value.reason == "IDEMPOTENCY_CONFLICT"

        for name in names.values():
            client.operation(name).result()
        assert shuffled.info().optimizer_steps == 2
        again = session.attach_model(shuffled.model_id)
        np.testing.assert_array_equal(logprobs(again), logprobs(ordered))


def test_two_models_trained_in_turn_are_each_as_if_alone(client):
    with client.create_session() as session:
        alone = []
        for seed in (1, 2):
            model = session.create_model(rank=4, seed=seed)
            alone.append((train(model, range(seed, seed + 4)), logprobs(model)))
        models = [session.create_model(rank=4, seed=seed) for seed in (1, 2)]
        losses = [[], []]
        for step in range(4):
            for index, model in enumerate(models):
                losses[index].append(model.forward_backward(batch(index + 1 + step)))
            for model in models:
                model.optim_step(learning_rate=1e-2)
        for index, model in enumerate(models):
            assert [loss.result().loss for loss in losses[index]] == alone[index][0]
            np.testing.assert_array_equal(logprobs(model), alone[index][1])


def test_two_forward_backwards_are_one_of_both(client):
    with client.create_session() as session:
        apart, together = (session.create_model(rank=4, seed=3) for _ in range(2))
        halves = [apart.forward_backward(batch(seed)) for seed in (1, 2)]
        whole = together.forward_backward(batch(1) + batch(2))
        norms = [model.optim_step(learning_rate=1e-2) for model in (apart, together)]
        total = sum(half.result().metrics["loss:sum"] for half in halves)
        assert total == pytest.approx(whole.result().metrics["loss:sum"], rel=1e-6)
        first, second = (norm.result().metrics["grad_norm:mean"] for norm in norms)
        assert first == pytest.approx(second, rel=1e-5)
        np.testing.assert_allclose(logprobs(apart), logprobs(together), atol=1e-4)


def test_a_sampler_does_not_move_when_training_goes_on(client):
    prompt = list(range(5, 25))
    with client.create_session() as session:
        model = session.create_model(rank=4, seed=3)
        train(model, (1,))
        unsaved = model.save_weights_for_sampler().result()
        saved = model.save_weights_for_sampler("frozen").result()
        before = unsaved.score([prompt])[0].logprobs
        drawn = unsaved.sample(prompt, max_tokens=12, seed=5).sequences[0].tokens
        train(model, (2, 3, 4))
        for sampler in (unsaved, saved):
            np.testing.assert_array_equal(sampler.score([prompt])[0].logprobs, before)
            again = sampler.sample(prompt, max_tokens=12, seed=5).sequences[0].tokens
            np.testing.assert_array_equal(again, drawn)
        moved = model.save_weights_for_sampler().result().score([prompt])[0].logprobs
        assert np.abs(moved - before)[1:].max() > 1e-3


def test_resuming_with_the_optimizer_is_exact_and_without_it_is_not(client):
    with client.create_session() as session:
        straight = session.create_model(rank=4, seed=3)
        train(straight, range(3))
        path = straight.save_state("half-way", overwrite=True).result()
        expected = train(straight, range(3, 6))

        resumed = session.create_model_from_checkpoint(path, with_optimizer=True)
        assert resumed.info().optimizer_steps == 3
        assert train(resumed, range(3, 6)) == expected
        np.testing.assert_array_equal(logprobs(resumed), logprobs(straight))

        loaded = session.create_model(rank=4, seed=8)
        train(loaded, (7,))
        loaded.load_state(path, with_optimizer=True).result()
        assert train(loaded, range(3, 6)) == expected

        cold = session.create_model_from_checkpoint(path)
        assert cold.info().optimizer_steps == 0
        losses = train(cold, range(3, 6))
        assert losses[0] == expected[0]
        assert losses[1] != expected[1]


def test_sampled_logprobs_are_those_of_scoring(client):
    prompt = list(range(40, 60))
    with client.create_session() as session:
        model = session.create_model(rank=4, seed=3)
        train(model, (1, 2))
        sampler = model.save_weights_for_sampler().result()
        result = sampler.sample(
            prompt, num_samples=4, max_tokens=16, temperature=0.7, top_p=0.9, seed=11, stop=[]
        )
        assert len({tuple(sequence.tokens) for sequence in result.sequences}) == 4
        for sequence in result.sequences:
            whole = np.concatenate([prompt, sequence.tokens])
            scored = sampler.score([whole], temperature=0.7)[0].logprobs
            assert len(scored) == len(whole)
            assert np.isnan(scored[0])
            np.testing.assert_allclose(sequence.logprobs, scored[len(prompt) :], atol=1e-4)


def test_a_seed_is_the_adapter_and_parts_are_honoured(client):
    with client.create_session() as session:
        first, same, other = (session.create_model(rank=4, seed=seed) for seed in (1, 1, 2))
        losses = [train(model, range(2)) for model in (first, same, other)]
        assert losses[0] == losses[1]
        assert losses[0][0] == losses[2][0]  # B is zero at the start, so the seed is unseen
        assert losses[0][1] != losses[2][1]
        partial = session.create_model(rank=4, seed=1, train_mlp=False, train_unembed=False)
        assert train(partial, range(2))[1] != losses[0][1]
        config = partial.info().lora_config
        assert (config.train_mlp, config.train_attn, config.train_unembed) == (False, True, False)


def test_the_model_lives_on_after_every_refusal(client):
    with client.create_session() as session:
        model = session.create_model(rank=4, seed=3)
        tokens = [5, 6, 7]
        refused = {
            'data[0].loss_fn_inputs["target_tokens"]': datum(tokens, [6, 7]),
            'data[0].loss_fn_inputs["weights"]': datum(tokens, tokens, [1.0, np.nan, 1.0]),
            "data[0].model_input": datum([5, VOCAB_SIZE, 7], tokens),
            'data[0].loss_fn_inputs["advantages"]': datum(tokens, tokens, advantages=[1.0] * 3),
        }
        for field, bad in refused.items():
            with pytest.raises(InvalidRequest) as caught:
                model.forward_backward([bad]).result()
            assert any(v.field.startswith(field) for v in caught.value.violations), field
        with pytest.raises(InvalidRequest, match="loss_fn"):
            model.forward_backward([datum(tokens, tokens)], "no_such_loss").result()
        with pytest.raises(InvalidRequest, match="learning_rate"):
            model.optim_step(learning_rate=-1.0).result()
        fresh = session.create_model(rank=4, seed=3)
        assert train(model, range(2)) == train(fresh, range(2))
