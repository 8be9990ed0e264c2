"""A gateway that is killed in the middle of saving leaves only checkpoints that load."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time

import numpy as np
import pytest

from tinkergate_client import TinkergateError, connect, datum

DELAYS = (0.0, 0.011, 0.037, 0.083)
"""Seconds from the first finished save to the kill: some fall into a save, whichever it is."""


def test_killed_while_saving(start_gateway, tmp_path):
    tokens = np.arange(5, 35)
    data = [datum(tokens[:-1], tokens[1:])]
    folder = tmp_path / "gateway"
    for delay in DELAYS:
        gateway = start_gateway(folder=folder)
        with connect(gateway.address, patience=0.1) as client:
            session = client.create_session()
            model = session.create_model(rank=32, seed=1)
            model.forward_backward(data)
            model.optim_step(learning_rate=1e-3)
            saves = [model.save_state("same", overwrite=True)]
            saves += [model.save_state() for _ in range(40)]
            saves += [model.save_state("same", overwrite=True) for _ in range(40)]
            saves[0].result()
            time.sleep(delay)
            gateway.signal(signal.SIGKILL)
            assert gateway.wait() == -signal.SIGKILL

    gateway = start_gateway(folder=folder)
    with connect(gateway.address) as client, client.create_session() as session:
        paths = [checkpoint.path for checkpoint in client.checkpoints.list()]
        assert len(paths) >= len(DELAYS)
        losses = set()
        for path in paths:
            model = session.create_model_from_checkpoint(path, with_optimizer=True)
            assert model.info().optimizer_steps == 1
            losses.add(model.forward(data).result().loss)
            model.unload().result()
        assert len(losses) == 1
        on_disk = {
            entry
            for kind in (gateway.data_dir / "checkpoints").glob("*/*")
            for entry in kind.iterdir()
            if entry.is_dir()
        }
        assert len(on_disk) == len(paths), "something is left that is no checkpoint"


def wait_until_stored(data_dir, name):
    """The store is written behind: return once the operation's result is on disk."""
    [path] = data_dir.glob("*.db")
    question = "SELECT result IS NOT NULL FROM operations WHERE name = ?"
    deadline = time.monotonic() + 60
    with contextlib.closing(sqlite3.connect(path)) as database:
        while database.execute(question, [name]).fetchone() != (1,):
            assert time.monotonic() < deadline, "the result never reached the store"
            time.sleep(0.02)


def test_a_killed_gateway_says_what_became_of_its_work(start_gateway, tmp_path):
    tokens = np.arange(5, 35)
    data = [datum(tokens[:-1], tokens[1:])]
    folder = tmp_path / "gateway"
    gateway = start_gateway(folder=folder)
    with connect(gateway.address, patience=0.1) as client:
        model = client.create_session().create_model(rank=4, seed=1)
        done = model.forward_backward(data)
        loss = done.result().loss
        name = done.name
        wait_until_stored(gateway.data_dir, name)
        gateway.signal(signal.SIGKILL)
        gateway.wait()
    again = start_gateway(folder=folder)
    with connect(again.address) as client:
        assert client.operation(name).result().loss == loss
        session_id = model.model_id.partition(":")[0]
        with pytest.raises(TinkergateError) as caught:
            client.attach_session(session_id).attach_model(model.model_id).forward(data).result()
        assert caught.value.reason in {"MODEL_NOT_READY", "SESSION_ENDED"}
