from __future__ import annotations

from typing import Any

import pytest


async def test_weights_info(house: Any) -> None:
    model = await house.model()
    for kind in ("weights", "sampler_weights", "external_weights"):
        path = await house.save(model, kind, "a")
        response = await house.post("weights_info", {"tinker_path": path})
        assert response.status_code == 200
        assert response.json() == {
            "base_model": "micro",
            "is_lora": True,
            "lora_rank": 4,
            "train_unembed": False,
            "train_mlp": True,
            "train_attn": True,
            "optimizer_config": {"type": "adamw"},
        }


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"tinker_path": 5}, 400),
        ({"tinker_path": "mint://a"}, 400),
        ({"tinker_path": "tinker://s:train:0/weights/a"}, 404),
    ],
)
async def test_weights_info_of_nothing(house: Any, body: dict[str, Any], status: int) -> None:
    assert (await house.post("weights_info", body)).status_code == status


async def copy(house: Any, status: int = 200, key: str = "", **body: Any) -> Any:
    headers = {"X-Idempotency-Key": key} if key else {}
    response = await house.post("copy_weights", body, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


async def test_a_copy_in_a_session(house: Any) -> None:
    path = await house.save(await house.model(), "weights", "a", ttl={"seconds": 4000})
    session = await house.session()
    asked = {"source_path": path, "session_id": session, "model_seq_id": 2}
    made = await copy(house, **asked)
    assert made == {"tinker_path": f"tinker://{session}:train:2/weights/a"}
    assert await copy(house, **asked) == made
    await house.client.delete(f"/api/v1/{house.route(path)}")
    held = (await house.get(f"training_runs/{session}:train:2/checkpoints")).json()["checkpoints"]
    assert [each["tinker_path"] for each in held] == [made["tinker_path"]]
    assert held[0]["expires_at"] is None
    info = await house.post("weights_info", {"tinker_path": made["tinker_path"]})
    assert info.json()["lora_rank"] == 4


async def test_a_copy_into_a_project_once_for_all_retries(house: Any) -> None:
    path = await house.save(await house.model(), "sampler_weights", "a")
    asked = {"source_path": path, "destination_project_id": "archive", "ttl_seconds": 7200}
    made = await copy(house, key="k1", **asked)
    assert await copy(house, key="k1", **asked) == made
    other = await copy(house, key="k2", **asked)
    assert other != made
    assert made["tinker_path"].endswith("/sampler_weights/a")
    runs = (await house.get("training_runs", params={"project_id": "archive"})).json()
    assert runs["cursor"]["total_count"] == 2
    session = made["tinker_path"].removeprefix("tinker://").split(":")[0]
    found = (await house.post("sessions/search", {"session_id": session})).json()["sessions"]
    assert found[0]["status"]["type"] == "client_finished"
    assert found[0]["project_id"] == "archive"
    assert found[0]["checkpoints_count"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "destination_project_id"),
        ({"session_id": "s"}, "model_seq_id"),
        ({"session_id": "s", "model_seq_id": 0}, "source_path"),
        ({"destination_project_id": "p", "source_path": "x"}, "path"),
        ({"destination_project_id": "p", "weights_access_token": "t"}, "weights_access_token"),
    ],
)
async def test_bad_copies(house: Any, body: dict[str, Any], field: str) -> None:
    told = await copy(house, 400, **body)
    assert told["violations"][0]["field"] == field


async def test_a_token_for_others_weights_is_refused(house: Any) -> None:
    headers = {"X-Tinker-Weights-Access-Token": "t"}
    body = {"source_path": "tinker://s:train:0/weights/a", "destination_project_id": "p"}
    response = await house.post("copy_weights", body, headers=headers)
    assert response.status_code == 400
    assert response.json()["violations"][0]["field"] == "weights_access_token"
