"""Gradients per token, over the wire: what they are divided by, when, and that they do not mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tinkergate_client import OperationFailed, connect, datum, reverse_kl_datum
from tinkergate_kernels.losses import LOSSES

VOCAB_SIZE = 512
LENGTHS = (9, 31, 1, 17)
TOKENS = "normalization_tokens:sum"
NORM = "grad_norm:mean"


@pytest.fixture
def client(gateway_process):
    with connect(gateway_process.address) as client:
        yield client


@pytest.fixture
def session(client):
    with client.create_session() as session:
        yield session


def tokens(draw, length):
    return draw.integers(3, VOCAB_SIZE, length)


def batch(seed, columns=()):
    """Datums of random tokens and weights, a third of them 0; and the number of those that are
    not, a token of several targets being one."""
    draw = np.random.default_rng(seed)
    data, active = [], 0
    for length in LENGTHS:
        shape = (length, *columns)
        weights = draw.normal(1.0, 1.0, shape) * (draw.random(shape) > 1 / 3)
        active += int((weights.reshape(length, -1) != 0).any(axis=1).sum())
        targets = draw.integers(3, VOCAB_SIZE, shape)
        data.append(datum(tokens(draw, length), targets, weights))
    return data, active


def per_token(model, data, loss="cross_entropy"):
    return model.forward_backward(data, loss, normalization="per_token")


def step(model, **settings):
    return model.optim_step(learning_rate=1e-2, **settings).result().metrics


def logprobs(model):
    """What the model says of a fixed batch."""
    return np.concatenate(model.forward(batch(99)[0]).result().logprobs)


def test_it_is_offered(client):
    [backend] = client.capabilities().backends
    assert backend.token_normalization


@pytest.mark.parametrize("columns", [(), (3,)], ids=["one target", "three targets"])
def test_a_batch_in_parts_is_the_whole_batch(session, columns):
    first, some = batch(1, columns)
    second, more = batch(2, columns)
    apart, together, sums = (session.create_model(rank=4, seed=3) for _ in range(3))
    halves = [per_token(apart, part).result() for part in (first, second[:1], second[1:])]
    whole = per_token(together, first + second).result()
    total = sums.forward_backward(first + second).result()
    # What is reported stays a sum.
    assert whole.metrics == total.metrics
    assert sum(half.loss for half in halves) == pytest.approx(total.loss, rel=1e-6)
    one, other, summed = step(apart), step(together), step(sums)
    assert one[TOKENS] == other[TOKENS] == some + more
    assert TOKENS not in summed
    assert one[NORM] == pytest.approx(other[NORM], rel=1e-5)
    assert other[NORM] * (some + more) == pytest.approx(summed[NORM], rel=1e-5)
    np.testing.assert_allclose(logprobs(apart), logprobs(together), atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_active_under_every_loss(session, name):
    draw = np.random.default_rng(5)
    data, active = [], 0
    for length in LENGTHS:
        kept = {key: draw.random(length) > 0.4 for key in ("weights", "advantages")}
        inputs = {key: draw.normal(size=length).astype(np.float32) for key in LOSSES[name].required}
        if "weights" in LOSSES[name].optional:
            inputs["weights"] = draw.normal(size=length).astype(np.float32)
        for key in inputs:
            if "logprobs" in key:
                inputs[key] -= 6.0
            if key == "sequence_ratio_mask":
                inputs[key] = np.ones(length, np.float32)
            inputs[key] *= kept.get(key, 1.0)
        counted = np.logical_and.reduce([kept[key] for key in kept if key in inputs])
        active += int(counted.sum())
        data.append(datum(tokens(draw, length), tokens(draw, length), **inputs))
    assert 0 < active < sum(LENGTHS)
    divided, summed = (session.create_model(rank=4, seed=3) for _ in range(2))
    per_token(divided, data, name)
    summed.forward_backward(data, name)
    metrics = step(divided)
    assert metrics[TOKENS] == active
    assert metrics[NORM] * active == pytest.approx(step(summed)[NORM], rel=1e-5)


def test_tokens_without_weights_are_all_active(session):
    model = session.create_model(rank=4)
    draw = np.random.default_rng(6)
    per_token(model, [datum(tokens(draw, n), tokens(draw, n)) for n in LENGTHS])
    assert step(model)[TOKENS] == sum(LENGTHS)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*tie_word_embeddings")
def test_a_step_is_that_of_a_plain_mean_and_clips_after_it(
    session, gateway_process, micro_model_dir
):
    start = session.create_model(rank=4, alpha=8, seed=3)
    start.forward_backward(batch(0)[0])
    step(start)
    path = start.save_state("normalization-start").result()
    [folder] = gateway_process.data_dir.glob("checkpoints/**/normalization-start")
    settings = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}
    for clip in (0.0, 0.05):
        model = session.create_model_from_checkpoint(path)
        base = AutoModelForCausalLM.from_pretrained(micro_model_dir, dtype=torch.float32)
        plain = PeftModel.from_pretrained(base, folder, is_trainable=True)
        parameters = [p for p in plain.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=1e-2, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1
        )
        for seed in (1, 2):
            data, active = batch(seed)
            per_token(model, data[:3])
            per_token(model, data[3:])
            metrics = step(model, grad_clip_norm=clip, **settings)
            losses = [-(w * lp).sum() for w, lp in scored(plain, seed)]
            (torch.stack(losses).sum() / active).backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            assert metrics[NORM] == pytest.approx(float(norm), rel=1e-4)
            assert clip < metrics[NORM]
        with torch.no_grad():
            theirs = np.concatenate([lp.numpy() for _, lp in scored(plain, 99)])
        np.testing.assert_allclose(logprobs(model), theirs, atol=2e-4)


def scored(model, seed):
    """(weights, logprobs of the targets) of each datum of `batch(seed)`, by transformers."""
    draw = np.random.default_rng(seed)
    for length in LENGTHS:
        weights = draw.normal(1.0, 1.0, length) * (draw.random(length) > 1 / 3)
        targets = torch.from_numpy(draw.integers(3, VOCAB_SIZE, length))
        ids = torch.from_numpy(tokens(draw, length))
        rows = model(ids[None]).logits[0].log_softmax(-1)
        yield torch.from_numpy(weights.astype(np.float32)), rows.gather(1, targets[:, None])[:, 0]


def test_clipping_comes_after_the_division(session):
    """With an eps that dwarfs the gradient a step is proportional to it, clipped or not."""
    data, active = batch(1)
    settings = {"eps": 1e4, "weight_decay": 0.0}
    plain, unclipped, clipped, summed = (session.create_model(rank=4, seed=3) for _ in range(4))
    for model in (plain, unclipped, clipped):
        per_token(model, data)
    summed.forward_backward(data)
    norm = plain.optim_step(learning_rate=1e4, **settings).result().metrics[NORM]
    between = norm * active**0.5  # less than the norm of the sum, more than that of the mean
    for model, clip in ((unclipped, between), (clipped, norm / 4), (summed, norm / 4)):
        model.optim_step(learning_rate=1e4, grad_clip_norm=clip, **settings)
    np.testing.assert_array_equal(logprobs(unclipped), logprobs(plain))
    np.testing.assert_allclose(logprobs(clipped), logprobs(summed), atol=1e-5)
    assert np.abs(logprobs(clipped) - logprobs(plain)).max() > 1e-3


def test_nothing_active_divides_nothing(session):
    model = session.create_model(rank=4)
    draw = np.random.default_rng(7)
    none = [datum(tokens(draw, n), tokens(draw, n), np.zeros(n)) for n in LENGTHS]
    assert per_token(model, none).result().loss == 0
    assert step(model) == {NORM: 0.0, TOKENS: 0.0}


@pytest.mark.parametrize("kinds", [("sum", "per_token"), ("per_token", "sum")])
def test_what_does_not_mix_is_refused_and_leaves_no_trace(session, kinds):
    data, active = batch(1)
    mixed, alone = (session.create_model(rank=4, seed=3) for _ in range(2))
    for model in (mixed, alone):
        model.forward_backward(data, normalization=kinds[0])
    refused = mixed.forward_backward(batch(2)[0], normalization=kinds[1])
    with pytest.raises(OperationFailed, match="take the step between them") as caught:
        refused.result()
    assert caught.value.reason == "NORMALIZATION_MIXED"
    # Scoring belongs to no kind.
    mixed.forward(data).result()
    assert step(mixed) == step(alone)
    np.testing.assert_array_equal(logprobs(mixed), logprobs(alone))
    # The step is between them now.
    mixed.forward_backward(data, normalization=kinds[1]).result()
    assert step(mixed).get(TOKENS) == (active if kinds[1] == "per_token" else None)


def test_reverse_kl_is_a_sum(client, session):
    model = session.create_model(rank=4, seed=3)
    text = reverse_kl_datum([5, 6, 7, 8], [0, 1, 1, 1], [5, 6, 7, 8])
    base = client.capabilities().default_model
    per_token(model, batch(1)[0])
    with pytest.raises(OperationFailed) as caught:
        model.forward_backward_reverse_kl([text], base).result()
    assert caught.value.reason == "NORMALIZATION_MIXED"
    assert step(model)[TOKENS] == batch(1)[1]
    model.forward_backward_reverse_kl([text], base).result()
    with pytest.raises(OperationFailed) as caught:
        per_token(model, batch(1)[0]).result()
    assert caught.value.reason == "NORMALIZATION_MIXED"


def test_loading_a_state_forgets_what_there_was(session):
    model = session.create_model(rank=4, seed=3)
    path = model.save_state("normalization-loaded").result()
    per_token(model, batch(1)[0])
    model.load_state(path)
    model.forward_backward(batch(2)[0]).result()
    assert TOKENS not in step(model)


def test_work_that_is_cancelled_counts_for_nothing(session):
    """A long call is cancelled while it runs: of its tokens none is left."""
    model = session.create_model(rank=4, seed=3)
    long = batch(3)[0] * 400
    per_token(model, batch(1)[0])
    running = per_token(model, long)
    per_token(model, batch(2)[0])
    running.cancel()
    ended = running.exception()
    expected = batch(1)[1] + batch(2)[1] + (0 if ended else 400 * batch(3)[1])
    assert step(model)[TOKENS] == expected


def test_the_client_knows_the_two_kinds(session):
    model = session.create_model(rank=4)
    with pytest.raises(ValueError, match="'mean'; must be 'sum' or 'per_token'"):
        model.forward_backward(batch(1)[0], normalization="mean")
