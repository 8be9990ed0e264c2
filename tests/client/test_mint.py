"""What MinT adds, by the client over gRPC, on the embedded engine."""

from __future__ import annotations

import numpy as np
import pytest

from tinkergate_client import (
    Client,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    OperationFailed,
    RolloutCorrection,
    TrainingModel,
    Unsupported,
    datum,
    model_input,
    observation,
    reverse_kl_datum,
    supervised_datum,
)

TEXT = [5, 6, 7, 8, 9, 10, 11]
MASK = [0, 0, 0, 1, 1, 1, 1]


def train(model: TrainingModel, steps: int = 3, seed: int = 0) -> None:
    numbers = np.random.default_rng(seed)
    for _ in range(steps):
        model.forward_backward([supervised_datum(numbers.integers(500, size=20), np.ones(20))])
        model.optim_step(learning_rate=1e-2)


def test_a_model_goes_back_to_its_base_by_reverse_kl(client: Client) -> None:
    base = client.capabilities().default_model
    text = reverse_kl_datum(TEXT, MASK, TEXT)
    with client.create_session() as session:
        model = session.create_model(rank=4, seed=1)
        first = model.forward_backward_reverse_kl([text, text], base).result()
        assert first.loss == pytest.approx(0.0, abs=1e-5)
        train(model)
        losses = []
        for _ in range(8):
            future = model.forward_backward_reverse_kl([text, text], base, temperature=1.5)
            model.optim_step(learning_rate=5e-3)
            losses.append(future.result())
        assert losses[-1].loss < losses[0].loss / 2
        assert [output["loss"].shape for output in losses[0].outputs] == [(1,), (1,)]
        told = sum(float(output["loss"][0]) for output in losses[0].outputs)
        assert told == pytest.approx(losses[0].loss, rel=1e-5)
        assert losses[0].metrics["active_tokens:sum"] == 8


def test_the_reference_may_be_a_checkpoint_that_was_saved_before_in_the_same_order(
    client: Client,
) -> None:
    text = reverse_kl_datum(TEXT, MASK, [1, 2, *TEXT[2:]])
    with client.create_session() as session:
        model = session.create_model(rank=4, seed=1)
        train(model)
        saved = model.save_state("teacher")
        path = saved.result()
        same = model.forward_backward_reverse_kl([reverse_kl_datum(TEXT, MASK, TEXT)], path)
        other_prompt = model.forward_backward_reverse_kl([text], path)
        assert same.result().loss == pytest.approx(0.0, abs=1e-5)
        assert other_prompt.result().loss > 1e-4


def test_bad_reverse_kl_requests_are_refused_by_name(client: Client) -> None:
    base = client.capabilities().default_model
    good = reverse_kl_datum(TEXT, MASK, TEXT)
    with client.create_session() as session:
        model = session.create_model(rank=2)
        cases = [
            ([good], "no/such-model", None, "reference_model_path"),
            ([good], "tinker://x", None, "reference_model_path"),
            ([good], base, 0.0, "temperature"),
            ([], base, None, "data"),
            ([reverse_kl_datum(TEXT, MASK, TEXT[-3:])], base, None, "data[0].reference_input"),
            (
                [good, reverse_kl_datum(TEXT, MASK, [*TEXT[:4], 99, 10, 11])],
                base,
                None,
                "data[1].reference_input",
            ),
        ]
        for data, reference, temperature, field in cases:
            future = model.forward_backward_reverse_kl(data, reference, temperature=temperature)
            with pytest.raises(InvalidRequest) as caught:
                future.result()
            assert [violation.field for violation in caught.value.violations] == [field]
        absent = model.forward_backward_reverse_kl([good], "tinker://s-0:train:0/weights/a")
        with pytest.raises(OperationFailed) as failed:
            absent.result()
        assert failed.value.reason == "CHECKPOINT_NOT_FOUND"
        # None of them took a place.
        assert model.forward_backward_reverse_kl([good], base).result().outputs


def test_checkpoints_are_added_up(client: Client) -> None:
    with client.create_session() as session:
        models = [session.create_model(rank=rank, seed=rank) for rank in (2, 3)]
        for model in models:
            train(model, seed=len(model.model_id))
        paths = [model.save_state().result() for model in models]
        made = client.checkpoints.interpolate({paths[0]: 1.0, paths[1]: 0.0}, name="mix")
        assert made.type == "sampler"
        assert made.path.endswith("/sampler_weights/mix")
        assert made.lora_rank == 5
        assert made.size_bytes > 0
        assert client.checkpoints.get(made.path) == made
        wanted, found = (
            client.score([TEXT], model_path=path)[0].logprobs for path in (paths[0], made.path)
        )
        np.testing.assert_allclose(found[1:], wanted[1:], atol=1e-5)
        again = client.checkpoints.interpolate([(made.path, 0.5), (paths[0], 0.5)])
        np.testing.assert_allclose(
            client.score([TEXT], model_path=again.path)[0].logprobs[1:], wanted[1:], atol=1e-5
        )
        trainable = client.checkpoints.interpolate({paths[0]: 0.5}, for_training=True)
        assert trainable.type == "training"
        with pytest.raises(FailedPrecondition):
            session.create_model_from_checkpoint(trainable.path, with_optimizer=True)
        train(session.create_model_from_checkpoint(trainable.path), steps=1)


@pytest.mark.parametrize(
    ("sources", "field"),
    [([], "source_paths"), ([("tinker://x", 1.0)], "source_paths[0]")],
)
def test_bad_sums_are_refused_by_name(
    client: Client, sources: list[tuple[str, float]], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.checkpoints.interpolate(sources)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_sums_of_what_is_not_there_and_of_no_numbers(client: Client) -> None:
    absent = "tinker://s-0:train:0/weights/a"
    with pytest.raises(NotFound):
        client.checkpoints.interpolate({absent: 1.0})
    with pytest.raises(InvalidRequest, match="must be finite"):
        client.checkpoints.interpolate({absent: float("nan")})


def test_a_rollout_correction_is_set_once_and_told_again(client: Client) -> None:
    correction = RolloutCorrection(threshold=1.1, lower_threshold=0.5)
    with client.create_session() as session:
        model = session.create_model(rank=2, rollout_correction=correction)
        assert model.info().rollout_correction == correction
        own = model.forward([datum(TEXT[:-1], TEXT[1:])]).result().logprobs[0]
        ones = np.ones(6, np.float32)
        result = model.forward_backward(
            [
                datum(TEXT[:-1], TEXT[1:], logprobs=own - off, advantages=ones)
                for off in np.float32([0.0, 0.05, -0.05, -0.5])
            ],
            "importance_sampling",
        ).result()
        assert result.metrics["masked_datums:sum"] == 2
        assert result.metrics["masked_tokens:sum"] == 12
        plain = session.create_model(rank=2)
        assert not plain.info().HasField("rollout_correction")
        for bad, field in (
            (RolloutCorrection(), "rollout_correction"),
            (RolloutCorrection(threshold=0.5), "rollout_correction.threshold"),
            (RolloutCorrection(lower_threshold=1.5), "rollout_correction.lower_threshold"),
            (RolloutCorrection(weight_cap=0.0), "rollout_correction.weight_cap"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                session.create_model(rank=2, rollout_correction=bad)
            assert [violation.field for violation in caught.value.violations] == [field]


def test_the_embedded_engine_refuses_what_sees_and_acts(client: Client) -> None:
    base = client.capabilities().default_model
    with client.create_session() as session:
        model = session.create_model(rank=2)
        with pytest.raises(Unsupported, match="vision-language-action"):
            model.vla_train_step([]).result()
        with pytest.raises(Unsupported, match="action sessions"):
            session.create_action_session(base)
        assert observation(model_input([1]), [0.5]).state == [0.5]
