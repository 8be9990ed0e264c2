"""One program, every backend, the same numbers: what the compatibility table promises."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compatibility import proves_on

from tinkergate.v1 import RolloutCorrection
from tinkergate_client import (
    AccessDenied,
    Client,
    InvalidRequest,
    NotFound,
    OperationFailed,
    Unsupported,
    datum,
    reverse_kl_datum,
    supervised_datum,
)

TEXTS = [[5, 80, 33, 14, 9, 200, 41], [7, 7, 120, 66], [301, 12, 90, 91, 92, 93]]
PROMPT = [5, 80, 33, 14]
BACKENDS = ("local", "tinker", "mint", "loops")


def data() -> list[Any]:
    return [supervised_datum(text, loss_mask=[0] + [1] * (len(text) - 1)) for text in TEXTS]


def model_on(session: Any, base_model: str, backend: str, **options: Any) -> Any:
    if not trains_unembed(backend):
        options["train_unembed"] = False
    return session.create_model(base_model, backend=backend, rank=4, seed=11, **options)


def trains_unembed(backend: str) -> bool:
    """Whether the backend's adapters have a part at the unembedding, as the canon's do."""
    return backend != "loops"


def check_same(found: Any, expected: Any, backend: str) -> None:
    """Numbers are the same to the last bit; of Loops, which has losses summed elsewhere and
    writes logprobs in decimals, within 1e-6 relative."""
    if backend == "loops":
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)
    else:
        np.testing.assert_array_equal(found, expected)


def trained(model: Any, steps: int = 2) -> list[float]:
    """The losses of some steps, all submitted before the first is waited for."""
    futures = []
    for _ in range(steps):
        futures.append(model.forward_backward(data()))
        model.optim_step(learning_rate=1e-2)
    return [future.result(60).loss for future in futures]


@pytest.fixture(scope="module")
def answers_of_local(client: Client, front: Any) -> Callable[[bool], dict[str, Any]]:
    """What the embedded engine answers, with the unembedding trained or not."""

    @cache
    def answers(train_unembed: bool) -> dict[str, Any]:
        name = f"held-against-{train_unembed}"
        with client.create_session() as session:
            model = model_on(session, front.base_model, "local", train_unembed=train_unembed)
            losses = trained(model, 3)
            sampler = model.save_weights_for_sampler(name).result(60)
            sampled = sampler.sample(PROMPT, max_tokens=6, seed=4, num_samples=2)
            scores = sampler.score(TEXTS, topk=3)
        return {
            "losses": losses,
            "tokens": [list(s.tokens) for s in sampled.sequences],
            "logprobs": [np.asarray(s.logprobs) for s in sampled.sequences],
            "scores": scores,
        }

    return answers


@pytest.fixture
def on_local(answers_of_local: Callable[[bool], dict[str, Any]], backend: str) -> dict[str, Any]:
    """What the embedded engine answers, for the backend to be held against: an adapter of the
    parts that the backend trains."""
    return answers_of_local(trains_unembed(backend))


@proves_on("training", local="native", tinker="native", mint="native", loops="native")
def test_training_gives_the_same_losses(
    client: Client, front: Any, on_local: dict[str, Any], backend: str
) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        assert model.info().backend == backend
        losses = trained(model, 3)
    check_same(losses, on_local["losses"], backend)
    assert losses[2] < losses[0]


@proves_on("steps", local="native", tinker="native", mint="native", loops="native")
def test_forward_moves_nothing_and_a_step_does(client: Client, front: Any, backend: str) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        first = model.forward(data()).result(60)
        again = model.forward(data()).result(60)
        assert first.loss == again.loss
        total = -sum(float(np.sum(row)) for row in first.logprobs)
        assert first.loss == pytest.approx(total, rel=1e-5)
        model.forward_backward(data()).result(60)
        model.optim_step(learning_rate=1e-2).result(60)
        assert model.forward(data()).result(60).loss < first.loss


@proves_on("create_model", local="native", tinker="native", mint="native", loops="native")
def test_a_model_is_made_as_asked_for(client: Client, front: Any, backend: str) -> None:
    with client.create_session() as session:
        model = session.create_model(
            front.base_model,
            backend=backend,
            rank=2,
            seed=3,
            train_unembed=False,
            user_metadata={"why": "to see"},
        )
        info = model.info()
        assert (info.backend, info.base_model) == (backend, front.base_model)
        assert info.lora_config.rank == 2
        assert not info.lora_config.train_unembed
        assert dict(info.user_metadata) == {"why": "to see"}


@proves_on("get_info", local="native", tinker="native", mint="native", loops="gateway")
def test_a_model_tells_of_itself(client: Client, front: Any, backend: str) -> None:
    with client.create_session() as session:
        info = model_on(session, front.base_model, backend).info()
    assert info.tokenizer_id == front.base_model
    assert info.lora_config.seed == 11


@proves_on(
    "save_weights_for_sampler", local="native", tinker="native", mint="native", loops="native"
)
def test_a_named_sampler_checkpoint_samples_the_same(
    client: Client, front: Any, on_local: dict[str, Any], backend: str
) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        trained(model, 3)
        saved = model.save_weights_for_sampler("kept").result(60)
        assert saved.model_path == f"tinker://{model.model_id}/sampler_weights/kept"
        sampler = session.create_sampler(model_path=saved.model_path)
        check_samples(sampler, on_local, backend)


def check_samples(sampler: Any, on_local: dict[str, Any], backend: str) -> None:
    sampled = sampler.sample(PROMPT, max_tokens=6, seed=4, num_samples=2)
    assert [list(s.tokens) for s in sampled.sequences] == on_local["tokens"]
    for sequence, logprobs in zip(sampled.sequences, on_local["logprobs"], strict=True):
        check_same(sequence.logprobs, logprobs, backend)


@proves_on(
    "create_sampling_session", local="native", tinker="native", mint="native", loops="native"
)
def test_a_base_model_samples_the_same(client: Client, front: Any, backend: str) -> None:
    def drawn(place: str) -> list[list[int]]:
        with client.create_session() as session:
            sampler = session.create_sampler(front.base_model, backend=place)
            found = sampler.sample(PROMPT, max_tokens=8, seed=2, num_samples=2)
        return [list(s.tokens) for s in found.sequences]

    tokens = drawn(backend)
    assert tokens == drawn("local")
    assert tokens[0] != tokens[1]


@proves_on("save_and_create", local="native", tinker="native", mint="gateway", loops="native")
def test_weights_go_straight_into_a_sampler(
    client: Client, front: Any, on_local: dict[str, Any], backend: str
) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        trained(model, 3)
        sampler = model.save_weights_for_sampler().result(60)
        trained(model, 1)  # a snapshot does not follow
        check_samples(sampler, on_local, backend)


@proves_on("compute_logprobs", local="native", tinker="native", mint="native", loops="native")
def test_scores_are_the_same(
    client: Client, front: Any, on_local: dict[str, Any], backend: str
) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        trained(model, 3)
        sampler = model.save_weights_for_sampler().result(60)
        scores = sampler.score(TEXTS, topk=3)
    for score, held in zip(scores, on_local["scores"], strict=True):
        check_same(score.logprobs, held.logprobs, backend)
        assert np.isnan(score.logprobs[0])
        np.testing.assert_array_equal(score.topk_tokens, held.topk_tokens)
        check_same(score.topk_logprobs, held.topk_logprobs, backend)


@proves_on("save_load", local="native", tinker="native", mint="native", loops="native")
def test_going_on_from_a_checkpoint_is_as_if_never_stopped(
    client: Client, front: Any, on_local: dict[str, Any], backend: str
) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        losses = trained(model, 2)
        path = model.save_state("middle").result(60)
        trained(model, 1)
        model.load_state(path, with_optimizer=True).result(60)
        losses += trained(model, 1)
        check_same(losses, on_local["losses"], backend)
        assert client.checkpoints.get(path).path == path


@proves_on("from_state", local="native", tinker="native", mint="gateway", loops="native")
def test_a_model_is_made_from_a_checkpoint(
    client: Client, front: Any, on_local: dict[str, Any], backend: str
) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        trained(model, 2)
        path = model.save_state("start").result(60)
        other = session.create_model_from_checkpoint(path, with_optimizer=True)
        assert other.info().lora_config.rank == 4
        check_same(trained(other, 1), on_local["losses"][2:], backend)


@proves_on("cluster", local="native", tinker="native", mint="native", loops="native")
def test_a_checkpoint_lives_where_it_was_saved(client: Client, front: Any, backend: str) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        path = model.save_state("here").result(60)
        assert client.checkpoints.get(path).backend == backend
        elsewhere = next(name for name in BACKENDS if name != backend)
        stranger = model_on(session, front.base_model, elsewhere)
        with pytest.raises(OperationFailed, match=backend) as refused:
            stranger.load_state(path).result(60)
        assert refused.value.reason == "CHECKPOINT_MISMATCH"
        with pytest.raises(InvalidRequest, match=backend):
            session.create_model_from_checkpoint(path, backend=elsewhere)


@proves_on("authentication", local="native", tinker="native", mint="native", loops="native")
def test_callers_bring_the_gateways_key_and_it_the_services_own(front: Any, backend: str) -> None:
    with pytest.raises(AccessDenied):
        front.connect("tml-upstream")
    with front.connect() as client, client.create_session() as session:
        model_on(session, front.base_model, backend)


@proves_on("seq_ids", local="native", tinker="native", mint="gateway", loops="native")
def test_order_is_the_callers_whatever_the_service_does(
    client: Client, front: Any, on_local: dict[str, Any], backend: str
) -> None:
    """The client numbers its requests; `tests/core` has them arrive in any order."""
    with client.create_session() as session:
        model = model_on(session, front.base_model, backend)
        futures = [model.forward_backward(data()) for _ in range(1)]
        for _ in range(2):
            model.optim_step(learning_rate=1e-2)
            futures.append(model.forward_backward(data()))
        accepted = [future.accepted(60)[0] for future in futures]
        assert [operation.seq_id for operation in accepted] == [1, 3, 5]
        losses = [future.result(60).loss for future in futures]
        check_same(losses, on_local["losses"], backend)
        bad = [supervised_datum([5, 9999], loss_mask=[0, 1])]
        with pytest.raises((InvalidRequest, OperationFailed)):
            model.forward_backward(bad).result(60)
        after = model.forward(data()).result(60).loss
        check_same(after, on_local["losses"][2], backend)


@proves_on("seq_mis", local="native", tinker="refused", mint="native", loops="refused")
def test_sequences_that_sampler_and_trainer_disagree_on_are_left_out(
    client: Client, front: Any, backend: str
) -> None:
    correction = RolloutCorrection(threshold=1.5, lower_threshold=0.5)
    with client.create_session() as session:
        if backend in ("tinker", "loops"):
            with pytest.raises(Unsupported, match=f"'{backend}' does not support rollout"):
                model_on(session, front.base_model, backend, rollout_correction=correction)
            return
        model = model_on(session, front.base_model, backend, rollout_correction=correction)
        plain = model_on(session, front.base_model, backend)
        logprobs = [row.copy() for row in plain.forward(data()).result(60).logprobs]
        logprobs[1] -= 1.0  # e and more times as likely to the trainer
        asked = [
            datum(
                text[:-1],
                text[1:],
                logprobs=row,
                advantages=np.ones(len(text) - 1, np.float32),
            )
            for text, row in zip(TEXTS, logprobs, strict=True)
        ]
        kept = model.forward(asked, "importance_sampling").result(60)
        whole = plain.forward(asked, "importance_sampling").result(60)
    tokens = sum(len(text) - 1 for text in TEXTS)
    over = len(TEXTS[1]) - 1
    assert kept.loss == pytest.approx(-(tokens - over), rel=1e-5)
    assert whole.loss == pytest.approx(-(tokens - over) - over * np.e, rel=1e-5)


@proves_on("preference", local="native", tinker="gateway", mint="gateway", loops="gateway")
def test_a_preference_is_learned(client: Client, front: Any, backend: str) -> None:
    """DPO. Its loss on local is the engine's own; the others' is computed by the gateway."""

    def losses(place: str) -> list[float]:
        with client.create_session() as session:
            model = model_on(
                session, front.base_model, place, train_unembed=trains_unembed(backend)
            )
            references = model.forward(data()[:2]).result(60).logprobs
            pair = [
                datum(text[:-1], text[1:], np.ones(len(text) - 1), ref_logprobs=row)
                for text, row in zip(TEXTS[:2], references, strict=True)
            ]
            futures = []
            for _ in range(3):
                futures.append(model.forward_backward(pair, "dpo", {"beta": 0.5}))
                model.optim_step(learning_rate=1e-2)
            return [future.result(60).loss for future in futures]

    found = losses(backend)
    assert found[0] == pytest.approx(np.log(2), rel=1e-5)
    assert found[2] < found[0]
    assert found == pytest.approx(losses("local"), rel=1e-5)


@proves_on("vla", local="refused", tinker="refused", loops="refused")
def test_models_that_act_are_refused_by_name(client: Client, front: Any, backend: str) -> None:
    with client.create_session() as session, pytest.raises(Unsupported, match=f"'{backend}'"):
        session.create_action_session(front.base_model, backend=backend)


def test_loops_says_which_part_of_an_adapter_it_leaves_out(
    client: Client, front: Any, answers_of_local: Callable[[bool], dict[str, Any]]
) -> None:
    asked = {"backend": "loops", "rank": 4, "seed": 11}
    with client.create_session() as session:
        model = session.create_model(front.base_model, **asked)
        info = model.info()
        assert not info.lora_config.train_unembed
        assert "train_unembed is false" in "".join(info.notes)
        losses = trained(model, 3)
        with pytest.raises(OperationFailed, match="does not support train_unembed = true"):
            session.create_model(front.base_model, exact_adapter=True, **asked)
    without, whole = (answers_of_local(part)["losses"] for part in (False, True))
    check_same(losses, without, "loops")
    # The part makes a difference that these tests would see.
    assert abs(losses[2] - whole[2]) > 1e-4 * whole[2]


def test_what_loops_lacks_is_refused_by_name(
    client: Client,
    front: Any,
    answers_of_local: Callable[[bool], dict[str, Any]],
    tmp_path: Path,
) -> None:
    with client.create_session() as session:
        model = model_on(session, front.base_model, "loops")
        path = model.save_weights_for_sampler("whole").result(60).model_path
        client.checkpoints.download(path, tmp_path)
        text = [reverse_kl_datum(TEXTS[0], np.ones(len(TEXTS[0])), TEXTS[0])]
        calls: dict[str, Callable[[], Any]] = {
            "the loss 'ppo' itself": lambda: model.forward_backward(
                data(), "ppo", native_loss_only=True
            ).result(60),
            "reverse KL": lambda: model.forward_backward_reverse_kl(text, path).result(60),
            "interpolation of checkpoints": lambda: client.checkpoints.interpolate({path: 1.0}),
            "copying of checkpoints": lambda: session.copy_checkpoint(path),
            "saving of external weights": lambda: model.save_weights_external("out").result(60),
            "importing of adapters": lambda: client.checkpoints.import_adapter(
                tmp_path, name="taken-in", base_model=front.base_model, backend="loops"
            ),
        }
        for feature, call in calls.items():
            with pytest.raises(Unsupported, match=f"'loops' does not support {feature}"):
                call()
        # The model has not noticed.
        check_same(trained(model, 3), answers_of_local(False)["losses"], "loops")


def test_programs_on_all_backends_at_once(
    client: Client, front: Any, answers_of_local: Callable[[bool], dict[str, Any]]
) -> None:
    """One process serves them all to one client, interleaved."""
    with client.create_session() as session:
        models = {name: model_on(session, front.base_model, name) for name in BACKENDS}
        futures: dict[str, list[Any]] = {name: [] for name in models}
        for _ in range(3):
            for name, model in models.items():
                futures[name].append(model.forward_backward(data()))
            for model in models.values():
                model.optim_step(learning_rate=1e-2)
        losses = {name: [f.result(60).loss for f in those] for name, those in futures.items()}
    for name, found in losses.items():
        check_same(found, answers_of_local(trains_unembed(name))["losses"], name)


def test_a_backend_that_is_not_there_is_named(client: Client, front: Any) -> None:
    with client.create_session() as session, pytest.raises(NotFound, match="nowhere"):
        model_on(session, front.base_model, "nowhere")
