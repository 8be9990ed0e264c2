from __future__ import annotations

from typing import Any

import pytest

from tinkergate.v1 import GetModelRequest, ModelState, WaitOperationRequest


@pytest.mark.parametrize("profile", ["full", "mint"])
async def test_a_model_is_freed_as_mint_does_it(open_rest: Any, profile: str) -> None:
    async with open_rest(profile=profile, key="sk-a") as rest:
        model = await rest.model()
        assert (await rest.client.delete(f"/api/v1/models/{model}")).status_code == 204
        assert (await rest.client.delete(f"/api/v1/models/{model}")).status_code == 204
        name = f"models/{model}/operations/unload"
        await rest.gateway.operations.wait(WaitOperationRequest(name=name))
        found = await rest.gateway.models.get(GetModelRequest(model_id=model))
        assert found.model.state == ModelState.MODEL_STATE_UNLOADED
        gone = await rest.client.delete("/api/v1/models/s-no:train:0")
        assert gone.status_code == 404
        assert "s-no:train:0" in gone.json()["detail"]
