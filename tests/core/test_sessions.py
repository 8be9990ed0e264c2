from __future__ import annotations

from typing import Any

import pytest

from tinkergate.core.sessions import place_of
from tinkergate.errors import GatewayError
from tinkergate.v1 import (
    CreateSamplerRequest,
    CreateSessionRequest,
    ErrorReason,
    FinishReason,
    FinishSessionRequest,
    GetModelRequest,
    GetSamplerRequest,
    GetSessionRequest,
    HeartbeatSessionRequest,
    ListSessionsRequest,
    ModelState,
    SessionState,
    SetSessionProjectRequest,
)


async def test_create_tells_the_times_and_get_shows_all(house: Any) -> None:
    response = await house.gateway.sessions.create(
        CreateSessionRequest(tags=["a"], user_metadata={"k": "v"}, display_name="d", project_id="p")
    )
    assert response.heartbeat_interval.seconds == 10
    assert response.expires_after.seconds == 300
    session_id = response.session.session_id
    model = await house.model(session_id)
    await house.gateway.samplers.create(
        CreateSamplerRequest(session_id=session_id, base_model="accounts/small")
    )
    got = (await house.gateway.sessions.get(GetSessionRequest(session_id=session_id))).session
    assert list(got.tags) == ["a"]
    assert dict(got.user_metadata) == {"k": "v"}
    assert (got.display_name, got.project_id) == ("d", "p")
    assert got.state == SessionState.SESSION_STATE_ACTIVE
    assert list(got.model_ids) == [model]
    assert list(got.sampler_ids) == [f"{session_id}:sample:0"]
    assert got.create_time.seconds == 1_700_000_000


async def test_request_id_answers_the_same_session(house: Any) -> None:
    create = house.gateway.sessions.create
    first = await create(CreateSessionRequest(request_id="u", display_name="x"))
    again = await create(CreateSessionRequest(request_id="u", display_name="x"))
    other = await create(CreateSessionRequest(display_name="x"))
    assert first.session.session_id == again.session.session_id != other.session.session_id
    with pytest.raises(GatewayError) as caught:
        await create(CreateSessionRequest(request_id="u", display_name="y"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_IDEMPOTENCY_CONFLICT


async def test_finish_ends_models_and_samplers_and_may_be_repeated(house: Any, make: Any) -> None:
    session_id = await house.session()
    model = await house.model(session_id)
    await house.gateway.samplers.create(
        CreateSamplerRequest(session_id=session_id, base_model="accounts/small")
    )
    parked = await house.gateway.training.submit(make.forward_backward(model, 1.0, 2))
    finish = FinishSessionRequest(
        session_id=session_id, reason=FinishReason.FINISH_REASON_ERRORED, detail="oh"
    )
    session = (await house.gateway.sessions.finish(finish)).session
    assert session.state == SessionState.SESSION_STATE_FINISHED
    assert (session.finish_reason, session.finish_detail) == (2, "oh")
    again = FinishSessionRequest(session_id=session_id)
    assert (await house.gateway.sessions.finish(again)).session == session
    failed = await house.wait(parked)
    assert failed.error.reason == ErrorReason.ERROR_REASON_SESSION_ENDED
    await house.gateway._background.join()
    assert model not in house.backend.accounts
    assert house.backend.samplers == {}
    got = await house.gateway.models.get(GetModelRequest(model_id=model))
    assert got.model.state == ModelState.MODEL_STATE_UNLOADED
    with pytest.raises(GatewayError) as caught:
        await house.gateway.samplers.get(GetSamplerRequest(sampler_id=f"{session_id}:sample:0"))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sessions.heartbeat(HeartbeatSessionRequest(session_id=session_id))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SESSION_ENDED
    assert caught.value.metadata["state"] == "finished"


async def test_silence_expires_a_session_and_any_call_is_a_sign_of_life(
    house: Any, make: Any
) -> None:
    silent, beating, working = [await house.session() for _ in range(3)]
    model = await house.model(working)
    for _ in range(2):
        house.clock.seconds += 200
        await house.gateway.sessions.heartbeat(HeartbeatSessionRequest(session_id=beating))
        await house.gateway.training.submit(make.forward_backward(model, 1.0))
        await house.gateway.reap()
    states = {
        session_id: (
            await house.gateway.sessions.get(GetSessionRequest(session_id=session_id))
        ).session.state
        for session_id in (silent, beating, working)
    }
    assert states == {
        silent: SessionState.SESSION_STATE_EXPIRED,
        beating: SessionState.SESSION_STATE_ACTIVE,
        working: SessionState.SESSION_STATE_ACTIVE,
    }


async def test_a_held_call_keeps_its_session_alive(house: Any) -> None:
    session_id = await house.session()
    with house.gateway.sessions.calling(session_id):
        house.clock.seconds += 1000
        await house.gateway.reap()
        assert house.gateway.sessions.is_active(session_id)
    house.clock.seconds += 299
    await house.gateway.reap()
    assert house.gateway.sessions.is_active(session_id)
    house.clock.seconds += 2
    await house.gateway.reap()
    assert not house.gateway.sessions.is_active(session_id)


async def test_list_is_paged_newest_first_and_filtered(house: Any) -> None:
    ids = [await house.session() for _ in range(5)]
    await house.gateway.sessions.finish(FinishSessionRequest(session_id=ids[2]))
    listed: list[str] = []
    token = ""
    pages = 0
    while True:
        response = await house.gateway.sessions.list(
            ListSessionsRequest(
                page_size=2, page_token=token, state=SessionState.SESSION_STATE_ACTIVE
            )
        )
        listed += [session.session_id for session in response.sessions]
        token = response.next_page_token
        pages += 1
        if not token:
            break
    assert listed == [ids[4], ids[3], ids[1], ids[0]]
    assert pages == 2


async def test_old_sessions_are_forgotten_with_their_models(open_house: Any, make: Any) -> None:
    house = await open_house(history_retention=1000, session_expires_after=10)
    model = await house.model()
    await house.wait(await house.gateway.training.submit(make.forward_backward(model, 1.0)))
    session_id = model.split(":")[0]
    house.clock.seconds += 11
    await house.gateway.reap()
    await house.gateway._background.join()
    house.clock.seconds += 1001
    await house.gateway.reap()
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sessions.get(GetSessionRequest(session_id=session_id))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SESSION_NOT_FOUND
    with pytest.raises(GatewayError) as caught:
        await house.gateway.models.get(GetModelRequest(model_id=model))
    assert caught.value.reason == ErrorReason.ERROR_REASON_MODEL_NOT_FOUND
    await house.gateway._store.flush()
    contents = house.gateway._store.load()
    assert contents.sessions == contents.models == contents.operations == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (CreateSessionRequest(tags=["x" * 200]), "tags[0]"),
        (CreateSessionRequest(tags=["x"] * 100), "tags"),
        (CreateSessionRequest(user_metadata={str(i): "" for i in range(100)}), "user_metadata"),
        (CreateSessionRequest(user_metadata={"k": "v" * 5000}), 'user_metadata["k"]'),
        (CreateSessionRequest(display_name="x" * 1000), "display_name"),
        (CreateSessionRequest(request_id="x" * 200), "request_id"),
    ],
)
async def test_what_is_too_large_is_refused(
    house: Any, request_: CreateSessionRequest, field: str
) -> None:
    with pytest.raises(GatewayError) as caught:
        await house.gateway.sessions.create(request_)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_session_is_moved_into_a_project_and_stays_there(
    house: Any, open_house: Any
) -> None:
    session = await house.session()
    request = SetSessionProjectRequest(session_id=session, project_id="p")
    moved = (await house.gateway.sessions.set_project(request)).session
    assert moved.project_id == "p"
    await house.gateway.close(5)
    again = await open_house(backend=house.backend)
    got = await again.gateway.sessions.get(GetSessionRequest(session_id=session))
    assert got.session.project_id == "p"
    await again.gateway.sessions.set_project(SetSessionProjectRequest(session_id=session))
    got = await again.gateway.sessions.get(GetSessionRequest(session_id=session))
    assert got.session.project_id == ""
    for bad, reason in (
        ({"session_id": "s-no"}, ErrorReason.ERROR_REASON_SESSION_NOT_FOUND),
        ({"session_id": session, "project_id": "x" * 257}, ErrorReason.ERROR_REASON_INVALID_FIELD),
    ):
        with pytest.raises(GatewayError) as caught:
            await again.gateway.sessions.set_project(SetSessionProjectRequest(**bad))
        assert caught.value.reason == reason


async def test_windows_and_searches_of_sessions(house: Any) -> None:
    opened = []
    for _ in range(4):
        house.clock.seconds += 1
        opened.append(await house.session())
    sessions = house.gateway.sessions
    found = sessions.window(1, 2)
    assert [session.session_id for session in found.items] == opened[2:0:-1]
    assert found.total == 4
    first, more = sessions.search(lambda session: session.session_id != opened[2], None, 2)
    assert [session.session_id for session in first] == [opened[3], opened[1]]
    assert more
    rest, more = sessions.search(lambda _: True, place_of(first[-1]), 2)
    assert [session.session_id for session in rest] == opened[:1]
    assert not more
