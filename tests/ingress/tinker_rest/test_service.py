"""Start-up: health, flags, keys, tokens, capabilities; and what is not offered."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

TML, SK = "tml-right", "sk-right"


async def test_health_needs_no_key_and_tells_of_draining(open_rest: Any) -> None:
    async with open_rest(api_keys=(TML,)) as rest:
        assert (await rest.get("healthz")).json() == {"status": "ok"}

        await rest.door.drain()

        assert (await rest.get("healthz")).status_code == 503


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "tml-wrong"},
        {"x-api-key": ""},
        {"authorization": "Bearer tml-wrong"},
        {"authorization": TML},
        {"x-api-key": TML, "authorization": "Bearer tml-wrong"},
        {"x-api-key": "eyJhbGciOiJub25lIn0.eyJleHAiOjk5OTk5OTk5OTl9."},
    ],
)
async def test_a_wrong_key_is_never_let_in(open_rest: Any, headers: dict[str, str]) -> None:
    async with open_rest(api_keys=(TML, SK)) as rest:
        for route in ("client/config", "auth/token", "create_session", "telemetry", "nowhere"):
            response = await rest.post(route, {}, headers=headers)

            assert response.status_code == 401, route
            assert response.json()["reason"] == "UNAUTHENTICATED"
            assert TML not in response.text
            assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers", [{"x-api-key": TML}, {"authorization": f"Bearer {TML}"}, {"x-api-key": SK}]
)
async def test_a_right_key_is_let_in_by_either_header(
    open_rest: Any, headers: dict[str, str]
) -> None:
    async with open_rest(api_keys=(TML, SK)) as rest:
        assert (await rest.post("create_session", {}, headers=headers)).status_code == 200


async def test_without_keys_everybody_is_let_in(rest: Any) -> None:
    assert (await rest.post("create_session", {})).status_code == 200
    assert (
        await rest.post("create_session", {}, headers={"x-api-key": "tml-any"})
    ).status_code == 200


async def test_a_token_stands_for_its_key(open_rest: Any) -> None:
    async with open_rest(api_keys=(SK,), token_lifetime=900.0) as rest:
        token = (await rest.ok("auth/token", {}, headers={"x-api-key": SK}))["jwt"]

        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] == 900
        assert abs(claims["iat"] - time.time()) < 60
        assert claims["sub"]
        assert claims["org_id"]
        by_token = {"x-api-key": token}
        assert (await rest.post("create_session", {}, headers=by_token)).status_code == 200
        # A token is no key: it makes no new tokens.
        assert (await rest.post("auth/token", {}, headers=by_token)).status_code == 401


async def test_a_token_of_another_secret_or_key_or_time_is_refused(open_rest: Any) -> None:
    async with open_rest(api_keys=("sk-old",)) as rest:
        old = (await rest.ok("auth/token", {}, headers={"x-api-key": "sk-old"}))["jwt"]
        assert (await rest.post("create_session", {}, headers={"x-api-key": old})).is_success
    async with open_rest(api_keys=(SK,)) as rest:
        good = (await rest.ok("auth/token", {}, headers={"x-api-key": SK}))["jwt"]
        claims = jwt.decode(good, options={"verify_signature": False})
        forged = jwt.encode(claims, b"x" * 32, algorithm="HS256")
        head, body, signature = good.split(".")
        bad = {"old": old, "forged": forged, "cut": f"{head}.{body}.{signature[:-4]}"}
        for name, token in bad.items():
            response = await rest.post("create_session", {}, headers={"x-api-key": token})

            assert response.status_code == 401, name
            # On this the SDK exchanges its key anew.
            assert 'error="invalid_token"' in response.headers["www-authenticate"], name
    async with open_rest(api_keys=(SK,), token_lifetime=-1.0) as rest:
        late = (await rest.ok("auth/token", {}, headers={"x-api-key": SK}))["jwt"]
        response = await rest.post("create_session", {}, headers={"x-api-key": late})
        assert response.status_code == 401
        assert "expired" in response.json()["detail"]


async def test_tokens_hold_across_restarts(open_rest: Any) -> None:
    async with open_rest(api_keys=(SK,)) as rest:
        token = (await rest.ok("auth/token", {}, headers={"x-api-key": SK}))["jwt"]
    async with open_rest(api_keys=(SK,)) as rest:
        response = await rest.post("create_session", {}, headers={"x-api-key": token})
        assert response.status_code == 200


async def test_flags_follow_the_key_the_version_and_the_limits(open_rest: Any) -> None:
    core = {"chunk_datums": 77, "chunk_bytes": 88_000}
    async with open_rest(api_keys=(TML, SK), core=core) as rest:

        async def flags(key: str, version: str) -> dict[str, Any]:
            body = {"sdk_version": version}
            return dict(await rest.ok("client/config", body, headers={"x-api-key": key}))

        old = await flags(SK, "0.22.0")
        new = await flags(TML, "0.38.0")

    assert old["pjwt_auth_enabled"] is True
    assert old["use_pyqwest_transport"] is False
    assert new["pjwt_auth_enabled"] is False
    assert new["use_pyqwest_transport"] is True
    assert (new["fwdbwd_max_chunk_len"], new["fwdbwd_max_chunk_bytes_count"]) == (77, 88_000)
    assert new["custom_loss_server_side"] is False


async def test_capabilities_list_every_name_of_a_model(rest: Any) -> None:
    supported = (await rest.get("get_server_capabilities")).json()["supported_models"]

    assert [model["model_name"] for model in supported] == ["micro", "tiny"]
    assert all(model["max_context_length"] == 512 for model in supported)
    assert all(model["trainable"] and model["sampleable"] for model in supported)


async def test_telemetry_is_accepted_whatever_it_is(open_rest: Any) -> None:
    async with open_rest(max_body_bytes=1000) as rest:
        for body in (b"{}", b"no json", b"", b"x" * 5000):
            response = await rest.post("telemetry", content=body)

            assert (response.status_code, response.json()) == (200, {"status": "accepted"})


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", "audit"),
        ("GET", "billing/usage/events"),
        ("GET", "billing/usage/checkpoints/current"),
        ("GET", "auth/apikey/me"),
        ("DELETE", "auth/apikey/me"),
    ],
)
async def test_the_vendors_own_accounts_are_refused_in_words(
    rest: Any, method: str, route: str
) -> None:
    response = await rest.client.request(method, f"/api/v1/{route}")

    assert response.status_code == 404
    assert "not offered by this gateway" in response.json()["detail"]


async def test_custom_losses_on_the_server_are_not_enabled(rest: Any) -> None:
    response = await rest.post("create_custom_loss", {"name": "mine"})

    assert response.status_code == 404
    assert "not enabled" in response.json()["detail"]


async def test_what_is_no_route_and_what_is_no_method_is_told(rest: Any) -> None:
    missing = await rest.get("nowhere")
    wrong = await rest.get("create_session")

    assert missing.status_code == 404
    assert missing.json()["detail"] == "there is no route GET /api/v1/nowhere"
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["detail"]


async def test_mint_has_its_own_routes_and_keys_only(open_rest: Any) -> None:
    async with open_rest(profile="mint") as rest:
        for key in ("", "tml-any"):
            headers = {"x-api-key": key} if key else {}
            assert (await rest.post("client/config", {}, headers=headers)).status_code == 401
        headers = {"x-api-key": "sk-any"}
        config = await rest.ok("client/config", {"sdk_version": "0.22.0"}, headers=headers)
        assert config["pjwt_auth_enabled"] is True
        token = (await rest.ok("auth/token", {}, headers=headers))["jwt"]
        rest.client.headers["x-api-key"] = token
        model = await rest.model()

        for method, route in (
            ("POST", "weights_info"),
            ("POST", "client/dynamic_config"),
            ("GET", "training_runs"),
            ("GET", f"training_runs/{model}"),
            ("GET", "sessions"),
            ("GET", "checkpoints"),
            ("GET", f"samplers/{await rest.sampler()}"),
            ("POST", "retrieve_futures"),
            ("POST", f"sessions/{rest.session_id}/finish"),
        ):
            response = await rest.client.request(method, f"/api/v1/{route}", json={})
            assert response.status_code == 404, route
            assert "there is no route" in response.json()["detail"], route
        assert (await rest.post("get_info", {"model_id": model})).status_code == 200
        assert (await rest.post("mint/checkpoints/interpolate", {})).status_code == 400
