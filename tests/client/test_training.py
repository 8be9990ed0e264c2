from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkergate_client import (
    Client,
    Datum,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    OperationCancelled,
    OperationFailed,
    Session,
    TrainingModel,
    connect,
    datum,
    supervised_datum,
)

VOCAB_SIZE = 512
RATE = 1e-2


def examples(count: int, seed: int = 0) -> list[Datum]:
    """Texts of uneven lengths, all tokens of them to be learned."""
    draw = np.random.default_rng(seed)
    texts = [draw.integers(3, VOCAB_SIZE, size=5 + 3 * index) for index in range(count)]
    return [supervised_datum(text, np.ones(text.size)) for text in texts]


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.create_session() as opened:
        yield opened


@pytest.fixture
def model(session: Session) -> TrainingModel:
    return session.create_model(rank=4, seed=1)


def test_steps_submitted_at_once_run_in_order(model: TrainingModel) -> None:
    data = examples(3)
    steps = [(model.forward_backward(data), model.optim_step(learning_rate=RATE)) for _ in range(4)]
    losses = [gradient.result().loss for gradient, _ in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] * 0.9
    assert all(update.result().metrics["grad_norm:mean"] > 0 for _, update in steps)
    info = model.info()
    assert (info.optimizer_steps, info.next_seq_id) == (4, 9)


def test_results_are_arrays_shaped_like_the_targets(model: TrainingModel) -> None:
    data = [*examples(2), datum([1, 2], [[3, 4], [5, 6]], np.full((2, 2), 0.5))]
    result = model.forward(data).result()
    assert [values.shape for values in result.logprobs] == [(4,), (7,), (2, 2)]
    assert all(values.dtype == np.float32 for values in result.logprobs)
    plain = -sum(float(values.sum()) for values in result.logprobs[:2])
    weighted = -0.5 * float(result.logprobs[2].sum())
    assert result.loss == pytest.approx(plain + weighted, rel=1e-5)


def test_forward_leaves_no_gradient(model: TrainingModel) -> None:
    model.forward(examples(1))
    assert model.optim_step(learning_rate=RATE).result().metrics["grad_norm:mean"] == 0


def test_a_rejected_request_takes_no_place(model: TrainingModel) -> None:
    good = model.forward_backward(examples(1))
    bad = model.forward_backward([datum([1], [VOCAB_SIZE])])
    after = model.optim_step(learning_rate=RATE)
    with pytest.raises(InvalidRequest) as caught:
        bad.result()
    assert caught.value.violations[0].field == 'data[0].loss_fn_inputs["target_tokens"]'
    with pytest.raises(InvalidRequest):
        _ = bad.name
    assert good.accepted()[0].seq_id == 1
    assert after.accepted()[0].seq_id == 2
    assert after.result().metrics["grad_norm:mean"] > 0


def test_work_that_fails_releases_the_next(model: TrainingModel, client: Client) -> None:
    first = model.save_state("same")
    again = model.save_state("same")
    after = model.optim_step()
    assert first.result().endswith("/weights/same")
    with pytest.raises(OperationFailed) as caught:
        again.result()
    assert caught.value.reason == "CHECKPOINT_EXISTS"
    assert caught.value.operation == again.name
    assert isinstance(again.exception(), OperationFailed)
    assert after.exception() is None
    client.checkpoints.delete(first.result())


def test_a_state_can_be_gone_back_to(model: TrainingModel, client: Client) -> None:
    data = examples(2)
    path = model.save_state("start").result()
    before = model.forward_backward(data)
    model.optim_step(learning_rate=RATE)
    changed = model.forward(data)
    assert model.load_state(path).result() == path
    restored = model.forward(data)
    assert changed.result().loss != before.result().loss
    for old, new in zip(before.result().logprobs, restored.result().logprobs, strict=True):
        np.testing.assert_array_equal(old, new)
    client.checkpoints.delete(path)


def test_a_model_may_go_on_from_a_checkpoint(session: Session, client: Client) -> None:
    data = examples(2)
    model = session.create_model(rank=4, seed=1)
    model.forward_backward(data)
    model.optim_step(learning_rate=RATE)
    path = model.save_state().result()
    copy = session.create_model_from_checkpoint(path, with_optimizer=True)
    for each in (model, copy):
        each.forward_backward(data)
        each.optim_step(learning_rate=RATE)
    one, other = (each.forward(data).result().logprobs for each in (model, copy))
    for old, new in zip(one, other, strict=True):
        np.testing.assert_array_equal(old, new)
    assert copy.info().optimizer_steps == 2
    client.checkpoints.delete(path)


def test_what_cannot_be_created_is_said(session: Session) -> None:
    with pytest.raises(NotFound) as caught:
        session.create_model("no/such-model")
    assert caught.value.reason == "BASE_MODEL_NOT_FOUND"


def test_settings_of_two_optimizers_do_not_mix(model: TrainingModel) -> None:
    from tinkergate_client import OptimizerParams

    with pytest.raises(ValueError, match="not both"):
        model.optim_step(learning_rate=1, optimizer=OptimizerParams(type="dimuon"))


def test_waiting_may_be_bounded_and_taken_up_again(model: TrainingModel) -> None:
    hole = model._submitter._take_id()
    waiting = model.optim_step(learning_rate=RATE)
    with pytest.raises(TimeoutError):
        waiting.result(timeout=0.05)
    assert not waiting.done()
    model._submitter._next_seq_id = hole
    model.optim_step()
    assert waiting.result(30).metrics["grad_norm:mean"] == 0
    assert waiting.done()


def test_work_that_has_not_begun_can_be_cancelled(model: TrainingModel) -> None:
    hole = model._submitter._take_id()
    waiting = model.forward_backward(examples(1))
    assert waiting.accepted()[0].seq_id == hole + 1
    assert waiting.cancel()
    with pytest.raises(OperationCancelled):
        waiting.result()
    model._submitter._next_seq_id = hole
    model.optim_step().result()
    assert model.info().next_seq_id == hole + 2  # the cancelled turn is passed over


def test_work_that_is_done_cannot_be_cancelled(model: TrainingModel) -> None:
    done = model.optim_step()
    done.result()
    assert not done.cancel()


def test_a_callback_is_called_when_the_result_is_there(model: TrainingModel) -> None:
    from concurrent.futures import Future

    called: Future[object] = Future()
    future = model.optim_step()
    future.add_done_callback(called.set_result)
    assert called.result(30) is future
    assert future.done()


async def test_futures_can_be_awaited(model: TrainingModel) -> None:
    data = examples(2)
    gradient = model.forward_backward(data)
    update = model.optim_step(learning_rate=RATE)
    sampler = model.save_weights_for_sampler()
    results = await asyncio.gather(gradient, update, sampler)
    assert results[0].loss == (await gradient).loss
    sampled = await results[2].sample_later([1, 2, 3], max_tokens=2, temperature=0)
    assert sampled.sequences[0].tokens.size <= 2
    with pytest.raises(InvalidRequest):
        await model.forward_backward([datum([1], [VOCAB_SIZE])])


async def test_an_awaiter_that_is_cancelled_ends_nothing(model: TrainingModel) -> None:
    hole = model._submitter._take_id()
    future = model.optim_step()

    async def wait() -> None:
        await future

    task = asyncio.create_task(wait())
    while not future._accepted.done():  # noqa: ASYNC110  # no event tells it
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    model._submitter._next_seq_id = hole
    model.optim_step()
    assert (await future).metrics


def test_any_client_may_ask_by_name(model: TrainingModel, gateway_process: Any) -> None:
    gradient = model.forward_backward(examples(1))
    names = [gradient.name, model.optim_step().name, model.save_weights_for_sampler().name]
    with connect(gateway_process.address) as other:
        results = [other.operation(name).result() for name in names]
        assert results[0].metrics == gradient.result().metrics  # type: ignore[attr-defined]
        assert results[1].metrics["grad_norm:mean"] > 0  # type: ignore[attr-defined]
        assert str(results[2]).startswith(model.model_id.split(":")[0])
        with pytest.raises(NotFound):
            other.operation("operations/none")


def test_an_unloaded_model_takes_nothing_more(model: TrainingModel) -> None:
    before = model.optim_step()
    model.unload().result()
    assert before.result()
    with pytest.raises(FailedPrecondition) as caught:
        model.optim_step().result()
    assert caught.value.reason == "MODEL_NOT_READY"


def test_lora_options_reach_the_model(session: Session, micro_model_dir: Path) -> None:
    model = session.create_model(
        rank=3, seed=7, alpha=6, train_mlp=False, train_unembed=False, user_metadata={"k": "v"}
    )
    info = model.info()
    lora = info.lora_config
    assert (lora.rank, lora.seed, lora.alpha) == (3, 7, 6)
    assert (lora.train_mlp, lora.train_attn, lora.train_unembed) == (False, True, False)
    assert dict(info.user_metadata) == {"k": "v"}
