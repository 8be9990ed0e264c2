from __future__ import annotations

import time
from typing import Any

import pytest

from tinkergate import v1
from tinkergate_client import Client, FailedPrecondition, Session, connect


def look_at(client: Client, session: Session) -> v1.Session:
    """The session as the gateway knows it, without being a call of the session."""
    connection = client._connection
    listed = connection.call(connection.sessions.ListSessions, v1.ListSessionsRequest())
    return next(found for found in listed.sessions if found.session_id == session.session_id)


def test_a_block_that_ends_well_is_a_success(client: Client) -> None:
    with client.create_session(display_name="d", tags=["t"], user_metadata={"k": "v"}) as session:
        seen = look_at(client, session)
        assert seen.state == v1.SessionState.SESSION_STATE_ACTIVE
        assert (seen.display_name, list(seen.tags), dict(seen.user_metadata)) == (
            *("d", ["t"], {"k": "v"}),
        )
    seen = look_at(client, session)
    assert seen.state == v1.SessionState.SESSION_STATE_FINISHED
    assert seen.finish_reason == v1.FinishReason.FINISH_REASON_SUCCESS


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (ValueError("no"), v1.FinishReason.FINISH_REASON_ERRORED, "ValueError: no"),
        (SystemExit(2), v1.FinishReason.FINISH_REASON_ERRORED, "SystemExit: 2"),
        (SystemExit(0), v1.FinishReason.FINISH_REASON_SUCCESS, ""),
        (
            KeyboardInterrupt(),
            v1.FinishReason.FINISH_REASON_INTERRUPTED,
            "KeyboardInterrupt",
        ),
    ],
)
def test_a_block_that_is_left_otherwise_says_how(
    client: Client, error: BaseException, reason: v1.FinishReason.ValueType, detail: str
) -> None:
    with pytest.raises(type(error)), client.create_session() as session:
        raise error
    seen = look_at(client, session)
    assert (seen.finish_reason, seen.finish_detail) == (reason, detail)


def test_the_end_of_a_block_waits_for_what_was_submitted(client: Client) -> None:
    with client.create_session() as session:
        model = session.create_model(rank=1)
        model.optim_step()
        model.save_state("last-words")
    (saved,) = client.checkpoints.list(model.model_id)
    assert saved.path.endswith("/weights/last-words")
    client.checkpoints.delete(saved.path)


def test_nothing_can_be_done_in_a_finished_session(client: Client) -> None:
    session = client.create_session()
    session.finish()
    session.finish()
    with pytest.raises(FailedPrecondition) as caught:
        session.create_model(rank=1)
    assert caught.value.reason == "SESSION_ENDED"


def test_heartbeats_keep_a_session_alive(start_gateway: Any) -> None:
    gateway = start_gateway(
        environment={
            "TINKERGATE_LIMITS_HEARTBEAT_INTERVAL": "0.05",
            "TINKERGATE_LIMITS_SESSION_EXPIRES_AFTER": "30",
        }
    )
    with connect(gateway.address) as client, client.create_session() as session:
        opened = look_at(client, session).last_heartbeat_time.ToNanoseconds()
        give_up = time.monotonic() + 20
        while look_at(client, session).last_heartbeat_time.ToNanoseconds() == opened:
            assert time.monotonic() < give_up, "no heartbeat arrived"


def test_another_program_may_go_on_in_a_session(client: Client, gateway_process: Any) -> None:
    with client.create_session() as session:
        model = session.create_model(rank=1)
        model.optim_step().result()
        with connect(gateway_process.address) as other:
            joined = other.attach_session(session.session_id)
            same = joined.attach_model(model.model_id)
            assert same.optim_step().accepted()[0].seq_id == 2
            second = joined.create_model(rank=1)
            assert second.model_id != model.model_id
            joined._ended.set()
