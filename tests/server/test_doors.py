"""Both doors of one gateway process, and what is restricted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tinkergate_client import connect


def get(address: str, path: str, key: str = "") -> httpx.Response:
    headers = {"x-api-key": key} if key else {}
    return httpx.get(f"http://{address}{path}", headers=headers, trust_env=False)


def test_one_gateway_behind_two_doors(start_gateway: Any, micro_model_dir: Path) -> None:
    gateway = start_gateway("--http", "127.0.0.1:0", "--alias", f"Qwen/Qwen3-8B={micro_model_dir}")
    (listening,) = [line for line in gateway.events() if line["event"] == "listening"]
    assert (listening["grpc"], listening["http"]) == (gateway.address, gateway.http_address)
    assert get(gateway.http_address, "/api/v1/healthz").json() == {"status": "ok"}
    answer = get(gateway.http_address, "/api/v1/get_server_capabilities", "tml-any").json()
    names = [model["model_name"] for model in answer["supported_models"]]
    assert names[0] == "Qwen/Qwen3-8B"
    with connect(gateway.address) as client, client.create_session() as session:
        assert client.capabilities().models[0].name == "Qwen/Qwen3-8B"
        path = f"/api/v1/sessions/{session.session_id}"
        assert get(gateway.http_address, path, "tml-any").status_code == 200
    assert gateway.stop() == 0


def test_the_profile_of_mint_leaves_out_what_mint_has_not(start_gateway: Any) -> None:
    full = start_gateway("--http", "127.0.0.1:0", engine=False)
    mint = start_gateway("--http", "127.0.0.1:0", "--profile", "mint", engine=False)
    planned = "/api/v1/training_runs"
    live = "/api/v1/get_server_capabilities"
    assert get(full.http_address, planned, "tml-any").status_code == 200
    assert get(mint.http_address, live, "sk-any").status_code == 200
    assert get(mint.http_address, planned, "sk-any").status_code == 404
    assert get(mint.http_address, live, "tml-any").status_code == 401


def test_both_doors_ask_for_the_key(start_gateway: Any) -> None:
    environment = {"TINKERGATE_API_KEY": "tml-right", "TINKERGATE_HTTP": "127.0.0.1:0"}
    gateway = start_gateway(engine=False, environment=environment)
    path = "/api/v1/get_server_capabilities"
    assert get(gateway.http_address, path, "tml-wrong").status_code == 401
    assert get(gateway.http_address, path, "tml-right").status_code == 200
    with connect(gateway.address, api_key="tml-right") as client:
        assert client.capabilities().gateway_version
    assert "tml-right" not in gateway.log()


def test_an_open_http_address_is_refused(start_gateway: Any) -> None:
    gateway = start_gateway("--http", "0.0.0.0:0", wait=False, engine=False)
    assert gateway.wait() == 1
    assert "can be reached from other machines" in gateway.log()
