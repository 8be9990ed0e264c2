from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest


async def held(house: Any) -> dict[str, dict[str, Any]]:
    checkpoints = (await house.get("checkpoints")).json()["checkpoints"]
    return {checkpoint["tinker_path"]: checkpoint for checkpoint in checkpoints}


async def test_published_unpublished_deleted(house: Any) -> None:
    path = await house.save(await house.model(), "weights", "publish")
    route = f"/api/v1/{house.route(path)}"
    for _ in range(2):
        response = await house.client.post(f"{route}/publish")
        assert (response.status_code, response.content) == (204, b"")
        assert (await held(house))[path]["public"] is True
        response = await house.client.post(f"{route}/publish")
        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
        assert "is public already" in response.json()["detail"]
        assert (await house.client.delete(f"{route}/publish")).status_code == 204
        assert (await held(house))[path]["public"] is False
        assert (await house.client.delete(f"{route}/publish")).status_code == 409
    assert (await house.client.delete(route)).status_code == 204
    assert await held(house) == {}
    for response in (
        await house.client.delete(route),
        await house.client.post(f"{route}/publish"),
        await house.client.put(f"{route}/ttl", json={"ttl_seconds": 4000}),
        await house.client.get(f"{route}/archive"),
        await house.client.get(f"{route}/external_weights_urls"),
    ):
        assert response.status_code == 404
        assert path in response.json()["detail"]


async def test_ttl_is_set_and_cleared(house: Any) -> None:
    path = await house.save(await house.model(), "sampler_weights", "ttl")
    route = f"/api/v1/{house.route(path)}/ttl"
    assert (await house.client.put(route, json={"ttl_seconds": 3600})).status_code == 204
    expires = datetime.fromisoformat((await held(house))[path]["expires_at"])
    assert 3590 < (expires - datetime.now(UTC)).total_seconds() <= 3600
    assert (await house.client.put(route, json={"ttl_seconds": None})).status_code == 204
    assert (await held(house))[path]["expires_at"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "ttl_seconds"),
        ({"ttl_seconds": "1"}, "ttl_seconds"),
        ({"ttl_seconds": 0}, "ttl"),
        ({"ttl_seconds": -5}, "ttl"),
        ({"ttl_seconds": 10**15}, "ttl"),
        ([], "body"),
    ],
)
async def test_bad_ttls(house: Any, body: Any, field: str) -> None:
    path = await house.save(await house.model(), "weights", "a")
    response = await house.client.put(f"/api/v1/{house.route(path)}/ttl", json=body)
    assert response.status_code == 400
    assert response.json()["violations"][0]["field"] == field


@pytest.mark.parametrize("checkpoint", ["a", "other/a", "weights/.a", "weights/a/b/c"])
async def test_bad_ids(house: Any, checkpoint: str) -> None:
    route = f"/api/v1/training_runs/s:train:0/checkpoints/{checkpoint}"
    for method, way in (("DELETE", ""), ("POST", "/publish"), ("PUT", "/ttl")):
        body = {"ttl_seconds": 4000}
        response = await house.client.request(method, f"{route}{way}", json=body)
        assert response.status_code == 400, (method, response.text)
        assert "must be" in response.json()["detail"]
