"""The connection breaks; nothing is lost and nothing is done twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tinkergate_client import (
    Client,
    Datum,
    GatewayUnreachable,
    TrainingModel,
    connect,
    supervised_datum,
)

RATE = 1e-2
DATA: list[Datum] = [supervised_datum(np.arange(3, 20), np.ones(17))]


@pytest.fixture
def broken(proxy: Any) -> Iterator[Client]:
    """A client behind the breaking proxy."""
    with connect(proxy.address) as client:
        yield client


def step(model: TrainingModel) -> float:
    model.forward_backward(DATA)
    model.optim_step(learning_rate=RATE).result()
    return model.forward(DATA).result().loss


def test_a_submission_whose_answer_is_lost_is_done_once(
    broken: Client, client: Client, proxy: Any
) -> None:
    with client.create_session() as calm, broken.create_session() as session:
        undisturbed = calm.create_model(rank=4, seed=1)
        model = session.create_model(rank=4, seed=1)
        for _ in range(3):
            expected = step(undisturbed)
            proxy.lose_next_answer()
            gradient = model.forward_backward(DATA)
            gradient.accepted(60)
            assert proxy.lost.is_set()
            proxy.lose_next_answer()
            update = model.optim_step(learning_rate=RATE)
            update.accepted(60)
            assert proxy.lost.is_set()
            assert gradient.exception() is None
            assert update.exception() is None
            assert model.forward(DATA).result().loss == expected
        assert model.info().optimizer_steps == 3


def test_a_wait_goes_on_after_the_connection_broke(
    broken: Client, client: Client, proxy: Any
) -> None:
    with client.create_session() as calm, broken.create_session() as session:
        undisturbed = calm.create_model(rank=4, seed=1)
        expected = step(undisturbed)
        model = session.create_model(rank=4, seed=1)
        hole = model._submitter._take_id()  # what comes after it waits
        update = model.optim_step(learning_rate=RATE)
        loss = model.forward(DATA)
        loss.accepted()
        assert not update.done()
        assert not loss.done()
        before = proxy.connections
        proxy.break_connections()
        model._submitter._next_seq_id = hole
        model.forward_backward(DATA)
        assert loss.result(60).loss == expected
        assert update.result(60).metrics["grad_norm:mean"] > 0
        assert proxy.connections > before
        assert model.info().optimizer_steps == 1


def test_a_result_whose_answer_is_lost_is_fetched_again(broken: Client, proxy: Any) -> None:
    with broken.create_session() as session:
        model = session.create_model(rank=4, seed=1)
        gradient = model.forward_backward(DATA)
        gradient.accepted()
        proxy.lose_next_answer()
        assert gradient.result(60).loss > 0
        assert proxy.lost.is_set()


def test_a_sample_whose_answer_is_lost_is_drawn_once(broken: Client, proxy: Any) -> None:
    with broken.create_session() as session:
        sampler = session.create_sampler()
        proxy.lose_next_answer()
        sampled = sampler.sample([1, 2, 3], max_tokens=8)
        assert proxy.lost.is_set()
        assert sampled.sequences[0].tokens.size > 0


def test_a_stream_goes_on_after_the_connection_broke(broken: Client, proxy: Any) -> None:
    with broken.create_session() as session:
        sampler = session.create_sampler()
        seen = []
        for index, sequence in sampler.stream([1, 2, 3], num_samples=4, max_tokens=8, seed=3):
            seen.append((index, sequence.tokens.tolist()))
            if len(seen) == 1:
                proxy.break_connections()
        calm = sampler.sample([1, 2, 3], num_samples=4, max_tokens=8, seed=3)
        assert sorted(seen) == [
            (index, sequence.tokens.tolist()) for index, sequence in enumerate(calm.sequences)
        ]


def test_without_a_gateway_patience_ends(proxy: Any) -> None:
    client = connect(proxy.address, patience=0.5)
    session = client.create_session()
    model = session.create_model(rank=1)
    proxy.close()
    lost = [model.optim_step() for _ in range(3)]
    for future in lost:
        with pytest.raises(GatewayUnreachable):
            future.result(60)
    session._ended.set()
    client.close()


def test_after_an_outage_the_order_goes_on(gateway_process: Any, proxy: Any) -> None:
    with connect(proxy.address, patience=0.3) as client, client.create_session() as session:
        model = session.create_model(rank=1)
        model.optim_step().result()
        target, proxy._target = proxy._target, ("127.0.0.1", 1)
        proxy.break_connections()
        lost = [model.optim_step() for _ in range(2)]
        for future in lost:
            assert isinstance(future.exception(60), GatewayUnreachable)
        proxy._target = target
        done = threading.Event()
        again = None
        while not done.is_set():
            again = model.optim_step()
            if again.exception(60) is None:
                done.set()
        assert again is not None
        assert again.accepted()[0].seq_id == 2
        assert model.info().optimizer_steps == 2


def test_a_program_that_fails_does_not_wait_for_a_gateway_that_is_gone(proxy: Any) -> None:
    # The patience is longer than any test may take.
    client = connect(proxy.address, patience=3600)
    with contextlib.suppress(ZeroDivisionError), client.create_session():
        proxy.close()
        raise ZeroDivisionError
    client.close()
