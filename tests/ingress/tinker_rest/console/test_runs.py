from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tinkergate.v1 import FinishSessionRequest


def ids(response: Any) -> list[str]:
    return [run["training_run_id"] for run in response.json()["training_runs"]]


async def test_runs_in_windows(house: Any) -> None:
    models = [await house.model() for _ in range(3)]
    response = await house.get("training_runs", params={"limit": 2, "access_scope": "owned"})
    assert response.status_code == 200
    assert ids(response) == models[:0:-1]
    assert response.json()["cursor"] == {"offset": 0, "limit": 2, "total_count": 3}
    response = await house.get("training_runs", params={"limit": 2, "offset": 2})
    assert ids(response) == models[:1]
    assert (await house.get("training_runs")).json()["cursor"]["limit"] == 20


async def test_one_run_and_its_checkpoints(house: Any) -> None:
    model = await house.model(user_metadata={"why": "test"})
    await house.save(model, "weights", "a", ttl={"seconds": 3600}, user_metadata={"k": "v"})
    await house.save(model, "sampler_weights", "s")
    path = await house.save(model, "external_weights", "e")
    run = (await house.get(f"training_runs/{model}", params={"access_scope": "accessible"})).json()
    assert run["training_run_id"] == model
    assert (run["base_model"], run["is_lora"], run["lora_rank"]) == ("micro", True, 4)
    assert run["corrupted"] is False
    assert run["user_metadata"] == {"why": "test"}
    assert datetime.fromisoformat(run["last_request_time"]).tzinfo is not None
    assert run["last_checkpoint"]["checkpoint_id"] == "weights/a"
    assert run["last_sampler_checkpoint"]["tinker_path"] == f"tinker://{model}/sampler_weights/s"

    held = (await house.get(f"training_runs/{model}/checkpoints")).json()["checkpoints"]
    assert [each["checkpoint_id"] for each in held] == [
        "external_weights/e",
        "sampler_weights/s",
        "weights/a",
    ]
    assert [each["checkpoint_type"] for each in held] == ["external", "sampler", "training"]
    assert held[0]["tinker_path"] == path
    weights = held[2]
    assert weights["user_metadata"] == {"k": "v"}
    assert weights["public"] is False
    assert weights["size_bytes"] > 1000
    life = datetime.fromisoformat(weights["expires_at"]) - datetime.fromisoformat(weights["time"])
    assert life.total_seconds() == 3600

    await house.model()
    response = await house.get("checkpoints", params={"limit": 2, "offset": 1})
    assert [each["checkpoint_id"] for each in response.json()["checkpoints"]] == [
        "sampler_weights/s",
        "weights/a",
    ]
    assert response.json()["cursor"] == {"offset": 1, "limit": 2, "total_count": 3}
    assert (await house.get("checkpoints")).json()["cursor"]["limit"] == 100


async def test_runs_of_a_project(house: Any) -> None:
    model = await house.model(await house.session(project_id="p"))
    await house.model()
    response = await house.get("training_runs", params={"project_id": "p"})
    assert ids(response) == [model]


async def test_a_run_that_ended_well_is_not_corrupted(house: Any) -> None:
    model = await house.model()
    request = FinishSessionRequest(session_id=model.split(":")[0])
    await house.gateway.sessions.finish(request)
    assert (await house.get(f"training_runs/{model}")).json()["corrupted"] is False


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "x"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"offset": "1.5"}, "offset"),
        ({"offset": "9" * 40}, "offset"),
        ({"access_scope": "all"}, "access_scope"),
    ],
)
async def test_bad_queries(house: Any, query: dict[str, str], field: str) -> None:
    response = await house.get("training_runs", params=query)
    assert response.status_code == 400
    assert response.json()["violations"][0]["field"] == field
    assert response.json()["detail"].startswith(field)


async def test_runs_that_are_not_there(house: Any) -> None:
    for path in ("training_runs/s-no:train:0", "training_runs/s-no:train:0/checkpoints"):
        response = await house.get(path)
        assert response.status_code == 404
        assert "'s-no:train:0'" in response.json()["detail"]


async def test_callers_without_a_key_are_refused(house: Any) -> None:
    for path in ("training_runs", "checkpoints", "sessions"):
        response = await house.get(path, headers={"X-API-Key": "tml-other"})
        assert response.status_code == 401


@pytest.mark.parametrize(
    ("version", "told"), [("0.22.0", 1), ("0.25.0", 1), ("0.38.0", 2), ("", 2), ("latest", 2)]
)
async def test_old_clients_are_told_no_type_that_they_cannot_read(
    house: Any, version: str, told: int
) -> None:
    model = await house.model()
    await house.save(model, "weights", "a")
    await house.save(model, "external_weights", "e")
    headers = {"x-stainless-package-version": version}
    for route in (f"training_runs/{model}/checkpoints", "checkpoints"):
        answer = (await house.get(route, headers=headers)).json()
        assert len(answer["checkpoints"]) == told
        assert answer.get("cursor", {}).get("total_count", told) == told
