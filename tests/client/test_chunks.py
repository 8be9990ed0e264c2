"""Large batches: split by the gateway's limits, accepted or rejected as a whole, merged again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tinkergate_client import Client, Datum, InvalidRequest, Session, connect, datum

RATE = 1e-2
COUNT = 5


def examples() -> list[Datum]:
    draw = np.random.default_rng(0)
    return [
        datum(draw.integers(3, 512, 6 + index), draw.integers(3, 512, 6 + index))
        for index in range(COUNT)
    ]


@pytest.fixture(scope="module")
def chunking(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of a gateway that takes two datums a request, and holds two requests a model."""
    start = request.getfixturevalue("start_small_gateway")
    with connect(start.address) as client:
        yield client


@pytest.fixture(scope="module")
def start_small_gateway(
    micro_model_dir: Any, tmp_path_factory: pytest.TempPathFactory, gateway_process: Any
) -> Iterator[Any]:
    gateway = type(gateway_process)(
        tmp_path_factory.mktemp("small"),
        ["--model", str(micro_model_dir)],
        {
            "TINKERGATE_LIMITS_CHUNK_DATUMS": "2",
            "TINKERGATE_LIMITS_QUEUE_RETRY_DELAY": "0.01",
            "TINKERGATE_LIMITS_MAX_QUEUED_OPERATIONS": "4",
        },
    )
    gateway.wait_until_listening()
    yield gateway
    gateway.stop()


@pytest.fixture
def session(chunking: Client) -> Iterator[Session]:
    with chunking.create_session() as opened:
        yield opened


def test_chunks_give_what_one_request_gives(session: Session, client: Client) -> None:
    in_chunks = session.create_model(rank=4, seed=1)
    gradient = in_chunks.forward_backward(examples())
    update = in_chunks.optim_step(learning_rate=RATE)
    assert [operation.seq_id for operation in gradient.accepted()] == [1, 2, 3]
    assert len(gradient.names) == 3
    assert update.accepted()[0].seq_id == 4
    with client.create_session() as other:
        whole = other.create_model(rank=4, seed=1)
        at_once = whole.forward_backward(examples())
        whole.optim_step(learning_rate=RATE)
        assert len(at_once.names) == 1
        assert gradient.result().loss == pytest.approx(at_once.result().loss, rel=1e-6)
        for part, one in zip(gradient.result().logprobs, at_once.result().logprobs, strict=True):
            np.testing.assert_allclose(part, one, atol=1e-5)
        after_chunks = in_chunks.forward(examples()).result().loss
        assert after_chunks == pytest.approx(whole.forward(examples()).result().loss, rel=1e-5)


@pytest.mark.parametrize("bad", range(COUNT))
def test_a_batch_with_one_bad_datum_leaves_nothing_behind(session: Session, bad: int) -> None:
    model = session.create_model(rank=4, seed=1)
    data = examples()
    data[bad] = datum([1], [512])
    with pytest.raises(InvalidRequest):
        model.forward_backward(data).result()
    # No gradient of the other chunks is there, and the order goes on.
    assert model.optim_step().result().metrics["grad_norm:mean"] == 0
    assert model.forward_backward(examples()).result().loss > 0
    assert model.optim_step().result().metrics["grad_norm:mean"] > 0


def test_a_batch_of_more_chunks_than_the_queue_holds_goes_through(session: Session) -> None:
    model = session.create_model(rank=4, seed=1)
    gradient = model.forward_backward(examples() * 4)
    update = model.optim_step(learning_rate=RATE)
    assert len(gradient.result().logprobs) == 4 * COUNT
    assert update.result().metrics["grad_norm:mean"] > 0


def test_more_steps_than_the_queue_holds_go_through(session: Session) -> None:
    model = session.create_model(rank=4, seed=1)
    futures = [model.optim_step(learning_rate=RATE) for _ in range(30)]
    assert all(future.exception() is None for future in futures)
    assert model.info().optimizer_steps == 30
