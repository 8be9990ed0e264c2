from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tinkergate.v1 import CreateSamplerRequest, FinishReason, FinishSessionRequest


async def search(house: Any, **body: Any) -> dict[str, Any]:
    response = await house.post("sessions/search", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def found(house: Any, **body: Any) -> list[str]:
    return [session["session_id"] for session in (await search(house, **body))["sessions"]]


async def test_sessions_are_listed_newest_first(house: Any) -> None:
    opened = [await house.session() for _ in range(3)]
    response = await house.get("sessions", params={"limit": 2, "access_scope": "owned"})
    assert response.json() == {"sessions": opened[:0:-1]}
    response = await house.get("sessions", params={"offset": 2})
    assert response.json() == {"sessions": opened[:1]}


async def test_one_session(house: Any) -> None:
    session = await house.session(user_metadata={"k": "v"}, display_name="nightly")
    model = await house.model(session)
    sampler = await house.gateway.samplers.create(
        CreateSamplerRequest(session_id=session, base_model="micro")
    )
    assert (await house.get(f"sessions/{session}")).json() == {
        "training_run_ids": [model],
        "sampler_ids": [sampler.sampler.sampler_id],
        "user_metadata": {"k": "v"},
        "display_name": "nightly",
    }
    assert (await house.get("sessions/s-no")).status_code == 404


async def test_a_session_is_moved_into_a_project(house: Any) -> None:
    session = await house.session(project_id="a")
    route = f"/api/v1/sessions/{session}/project"
    assert (await house.client.put(route, json={"project_id": "b"})).status_code == 204
    assert await found(house, project_ids=["b"]) == [session]
    assert await found(house, project_ids=["a"]) == []
    for body in ({}, {"project_id": 5}, {"project_id": "x" * 257}):
        response = await house.client.put(route, json=body)
        assert response.status_code == 400
        assert response.json()["violations"][0]["field"] == "project_id"
    response = await house.client.put("/api/v1/sessions/s-no/project", json={"project_id": "b"})
    assert response.status_code == 404


async def test_there_is_no_trace_and_it_is_said(house: Any) -> None:
    session = await house.session()
    told = (await house.get(f"sessions/{session}/trace_export")).json()
    assert told["status"] == "failed"
    assert "no timelines" in told["error"]
    assert (await house.get("sessions/s-no/trace_export")).status_code == 404


async def test_search_by_what_sessions_say_of_themselves(house: Any) -> None:
    nightly = await house.session(
        display_name="Nightly Run of Team A", project_id="p", user_metadata={"a": "1", "b": "2"}
    )
    other = await house.session(display_name="daily run", user_metadata={"a": "1"})
    assert await found(house) == [other, nightly]
    assert await found(house, display_name="RUN") == [other, nightly]
    assert await found(house, display_name="team nightly") == [nightly]
    assert await found(house, display_name="team daily") == []
    assert await found(house, session_id=other) == [other]
    assert await found(house, session_id=other, display_name="nightly") == [other, nightly]
    assert await found(house, project_ids=["p", "q"]) == [nightly]
    assert await found(house, user_metadata={"a": "1"}) == [other, nightly]
    assert await found(house, user_metadata={"a": "1", "b": "2"}) == [nightly]
    assert await found(house, owner={"type": "accessible"}) == [other, nightly]
    ours = {"type": "user", "owner_urns": ["tinkergate"]}
    assert await found(house, owner=ours) == [other, nightly]
    theirs = {"type": "user", "owner_urns": ["tml:user:1"]}
    assert await found(house, owner=theirs) == []


async def test_search_by_status(house: Any) -> None:
    active, done, failed, silent = [await house.session() for _ in range(4)]
    finish = house.gateway.sessions.finish
    reason = FinishReason.FINISH_REASON_ERRORED
    await finish(FinishSessionRequest(session_id=failed, reason=reason, detail="no memory"))
    reason = FinishReason.FINISH_REASON_SUCCESS
    await finish(FinishSessionRequest(session_id=done, reason=reason))
    house.gateway.sessions._entries[silent].heard_at -= 1e6
    house.gateway.sessions.reap()
    assert await found(house, statuses=[{"type": "active"}]) == [active]
    finished = {"type": "client_finished"}
    assert await found(house, statuses=[finished]) == [failed, done]
    assert await found(house, statuses=[finished | {"reasons": ["errored"]}]) == [failed]
    either = [{"type": "active"}, finished | {"reasons": ["success"]}]
    assert await found(house, statuses=either) == [done, active]
    assert await found(house, statuses=[{"type": "failed"}, {"type": "cancelled"}]) == []
    told = {each["session_id"]: each for each in (await search(house))["sessions"]}
    assert told[silent]["status"] is None
    assert told[failed]["status"] == {
        "type": "client_finished",
        "reason": {"type": "errored"},
        "detail": "no memory",
    }


async def test_search_pages_and_what_a_summary_holds(house: Any) -> None:
    session = await house.session(display_name="first")
    path = await house.save(await house.model(session), "weights", "a")
    opened = [session] + [await house.session() for _ in range(4)]
    body: dict[str, Any] = {"limit": 2}
    pages = []
    while True:
        page = await search(house, **body)
        pages.append([each["session_id"] for each in page["sessions"]])
        if page.get("next_cursor") is None:
            break
        body["cursor"] = page["next_cursor"]
    assert pages == [opened[:2:-1], opened[2:0:-1], opened[:1]]
    summary = page["sessions"][0]
    checkpoint = (await house.get("checkpoints")).json()["checkpoints"][0]
    assert checkpoint["tinker_path"] == path
    assert summary["checkpoints_count"] == 1
    assert summary["checkpoint_storage_bytes"] == checkpoint["size_bytes"]
    assert summary["display_name"] == "first"
    assert summary["status"] == {"type": "active"}
    assert datetime.fromisoformat(summary["created_at"]).tzinfo is not None
    assert summary["owner"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"statuses": []}, "statuses"),
        ({"statuses": [{"type": "gone"}]}, "statuses[0].type"),
        ({"statuses": [{"type": "client_finished", "reasons": ["x"]}]}, "statuses[0].reasons"),
        ({"owner": {"type": "all"}}, "owner.type"),
        ({"owner": {"type": "user", "owner_urns": []}}, "owner.owner_urns"),
        ({"owner": {"type": "user", "owner_urns": ["u"] * 11}}, "owner.owner_urns"),
        ({"user_metadata": {"a": 1}}, "user_metadata.a"),
        ({"cursor": {"last_created_at": "x", "last_session_id": "s"}}, "cursor.last_created_at"),
        ({"cursor": {"last_created_at": "2026-01-01T00:00:00"}}, "cursor.last_created_at"),
        ({"cursor": {"last_created_at": "2026-01-01T00:00:00Z"}}, "cursor.last_session_id"),
    ],
)
async def test_bad_searches(house: Any, body: dict[str, Any], field: str) -> None:
    response = await house.post("sessions/search", body)
    assert response.status_code == 400
    assert response.json()["violations"][0]["field"] == field
