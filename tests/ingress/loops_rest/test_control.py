"""The control plane: sessions, teams, runs, checkpoints and their files, what is not offered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tinkergate.ingress.loops_rest import runs

COMMON = ["loops/sessions", "loops/trainers", "loops/samplers"]


async def test_keys_come_in_two_forms(open_loops: Any) -> None:
    for scheme in ("Api-Key", "Bearer", "api-key"):
        async with open_loops(api_keys=("k1",), authorization=f"{scheme} k1") as loops:
            assert await loops.session()
    for authorization in ("", "Api-Key k2", "Basic k1", "Api-Key"):
        async with open_loops(api_keys=("k1",), authorization=authorization) as loops:
            answer = await loops.client.post("/v1/loops/sessions")
            assert answer.status_code == 401
            assert answer.headers["x-baseten-error-source"] == "06"
            assert answer.headers["x-baseten-error-code"] == "unauthenticated"
            assert (await loops.client.get("/loops/trainers/x/health")).status_code == 401


async def test_the_one_team(loops: Any) -> None:
    (team,) = (await loops.told("teams"))["teams"]
    session = (await loops.ok(f"teams/{team['id']}/loops/sessions"))["session"]["id"]
    body = {"session_id": session, "base_model": "micro", "lora_rank": 4}
    run = (await loops.ok(f"teams/{team['id']}/loops/trainers", body))["run"]
    of_run = {"session_id": session, "run_id": run["id"]}
    assert (await loops.ok(f"teams/{team['id']}/loops/samplers", of_run))["sampler"]["id"]
    assert (await loops.told(f"loops/sessions/{session}"))["session"] == {"id": session}
    for route in COMMON:
        assert (await loops.post(f"teams/other/{route}", body)).status_code == 404


async def test_a_run_as_it_is_told(loops: Any) -> None:
    trainer = await loops.trainer(name="demo", availability_model="spot", base_model="tiny")
    run = trainer.run
    # The alias is replaced by the name.
    assert (run["base_model"], run["name"], run["deployment_id"]) == ("micro", "demo", None)
    assert run["base_url"].startswith(str(loops.client.base_url).rstrip("/"))
    assert run["status"] == {"name": "ACTIVE"}
    assert run["sampler"] is None
    assert (await loops.told(f"loops/runs/{run['id']}"))["run"] == run
    assert (await loops.told("loops/runs", base_model="micro"))["runs"] == [run]
    assert (await loops.told("loops/runs", base_model="other"))["runs"] == []
    assert (await loops.told("loops/deployments"))["deployments"] == []
    both = await loops.ok(
        "loops/runs", {"session_id": run["session_id"], "base_model": "micro", "lora_rank": 2}
    )
    assert both["run"]["sampler"]["base_model"] == "micro"
    assert (await loops.get("loops/runs/s-1:train:9")).status_code == 404


async def test_a_dedicated_trainer_has_a_deployment(dedicated: Any) -> None:
    own = (await dedicated.trainer()).run
    deployment = (await dedicated.told(f"loops/deployments/{own['deployment_id']}"))["deployment"]
    assert deployment["status"] == {"name": "RUNNING"}
    assert deployment["active_run_id"] == own["id"]
    await dedicated.ok(f"loops/deployments/{own['deployment_id']}/deactivate")
    (stopped,) = (await dedicated.told("loops/deployments"))["deployments"]
    assert stopped["status"] == {"name": "STOPPED"}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"base_model": "nothing"}, 404, "nothing"),
        ({"lora_rank": 0}, 422, "lora_rank"),
        ({"replicas": 0}, 422, "replicas"),
        ({"max_seq_len": 513}, 422, "max_seq_len"),
        ({"availability_model": "reserved"}, 422, "availability_model"),
        ({"base_checkpoint": "hf://a/b"}, 422, "base_checkpoint"),
        ({"name": ""}, 422, "name"),
        ({"path": "s3://bucket"}, 422, "path"),
        ({"path": "bt://loops:s-0000000000000000:train:0/weights/x"}, 404, "bt://loops:"),
        ({"session_id": "s-none"}, 404, "s-none"),
    ],
)
async def test_runs_that_are_refused(
    loops: Any, body: dict[str, Any], status: int, words: str
) -> None:
    asked = {"session_id": await loops.session(), "base_model": "micro", "lora_rank": 4} | body
    answer = await loops.post("loops/trainers", asked)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert [run["status"]["name"] for run in (await loops.told("loops/runs"))["runs"]] in (
        [],
        ["INACTIVE"],
    )


async def test_capabilities(loops: Any) -> None:
    models = (await loops.told("loops/capabilities"))["supported_models"]
    assert {model["model_name"] for model in models} == {"micro", "tiny"}
    for model in models:
        assert model["max_context_length"] == model["max_seq_len"] == 512
        assert (model["enabled"], model["enablement_details"]) == (True, None)
    (longer,) = (await loops.told("loops/capabilities", model="micro", max_seq_len=1000))[
        "supported_models"
    ]
    assert longer["enabled"] is False
    assert longer["enablement_details"]["reason"] == "sequence_length_unsupported"
    assert (await loops.get("loops/capabilities", use_case="chat")).status_code == 422


async def test_checkpoints_and_their_files(loops: Any, make_datum: Any, tmp_path: Path) -> None:
    trainer = await loops.trainer()
    await trainer.backward(make_datum())
    await trainer.step()
    await trainer.result("save_state", {"name": "same"})
    sampler_path = (await trainer.publish("same"))["path"]
    listed = (await loops.told("loops/checkpoints", run_id=trainer.run_id))["checkpoints"]
    assert [(each["checkpoint_id"], each["target"]) for each in listed] == [
        ("same", "sampler"),
        ("same", "trainer"),
    ]
    assert (await loops.told("loops/checkpoints", base_model="micro"))["checkpoints"] == listed
    (one,) = (await loops.told("loops/checkpoints", checkpoint_path=sampler_path))["checkpoints"]
    assert one == listed[0]
    assert (one["base_model"], one["lora_adapter_config"]["r"]) == ("micro", 4)
    trained = listed[1]
    place = f"loops/checkpoints/{quote(trained['id'], safe='')}"
    assert await loops.told(f"{place}/source") == {"source": {"kind": "s3"}}
    found, token, pages = {}, 0, 0
    while token is not None:
        page = await loops.told(f"{place}/files", page_size=1, page_token=token)
        token, pages = page["next_page_token"], pages + 1
        for file in page["presigned_urls"]:
            # No key, no other header: the link is enough.
            content = (await loops.client.get(file["url"])).content
            assert len(content) == file["size_bytes"]
            found[file["relative_file_name"]] = hashlib.sha256(content).hexdigest()
    assert page["total_count"] == pages == len(found)
    folder = tmp_path / "checkpoints" / quote(trainer.run_id, safe="") / "weights" / "same"
    assert found == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()
    }
    valid = {"checkpoint_path": sampler_path, "run_id": trainer.run_id}
    assert await loops.ok("loops/checkpoints/validate", valid) == {}
    for path in (f"{sampler_path}x", "s3://bucket", "bt://loops:x/weights/y", ""):
        answer = await loops.post("loops/checkpoints/validate", {"checkpoint_path": path})
        assert answer.status_code == 400
    unknown = sampler_path.replace("/same", "/other")
    assert (await loops.get("loops/checkpoints", checkpoint_path=unknown)).status_code == 404
    assert (await loops.get("loops/checkpoints")).status_code == 422
    assert (await loops.get("loops/checkpoints/nothing/source")).status_code == 404
    both = await loops.get("loops/checkpoints", run_id="x", base_model="y")
    assert both.status_code == 422


async def test_checkpoints_survive_a_restart(open_loops: Any, make_datum: Any) -> None:
    async with open_loops() as loops:
        trainer = await loops.trainer(name="before")
        await trainer.backward(make_datum())
        old = (await trainer.result("save_state", {"name": "old"}))["path"]
        # From here on the run has another model behind it.
        await trainer.init(2, seq_id=1)
        saved = await trainer.result("save_state", {"name": "kept"}, seq_id=2)
        path = saved["path"]
        assert path == old.replace("old", "kept")
    async with open_loops() as loops:
        (run,) = (await loops.told("loops/runs"))["runs"]
        assert (run["id"], run["name"], run["status"]["name"]) == (
            trainer.run_id,
            "before",
            "INACTIVE",
        )
        listed = (await loops.told("loops/checkpoints", run_id=trainer.run_id))["checkpoints"]
        assert [each["checkpoint_id"] for each in listed] == ["kept", "old"]
        for each, rank in ((path, 2), (old, 4)):
            resumed = await loops.trainer(path=each, lora_rank=rank)
            told = await resumed.result("load_state_with_optimizer", {"path": each})
            assert told == {"step": 0}


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("POST", "loops/checkpoints/deploy"),
        ("POST", "loops/deployments/d/metrics"),
        ("GET", "loops/deployments/d/logs"),
        ("GET", "loops/deployments/d/debug_archive/files"),
        ("GET", "loops/user_config"),
        ("PATCH", "loops/user_config"),
        ("POST", "loops/debug/trainers"),
        ("POST", "teams/default/loops/debug/samplers"),
        ("POST", "volumes/token"),
    ],
)
async def test_what_is_not_offered_says_so(loops: Any, method: str, route: str) -> None:
    answer = await loops.client.request(method, f"/v1/{route}")
    assert answer.status_code == 501
    assert answer.json()["details"]["reason"] == "UNSUPPORTED"
    assert "not offered" in answer.json()["detail"]


async def test_there_is_no_redirect_and_no_such_route(loops: Any) -> None:
    for path in ("/v1/teams/", "/v1/nothing", "/v1/loops/trainers/"):
        assert (await loops.client.get(path)).status_code == 404
    trainer = await loops.trainer(init=False)
    # 404 would mean "still starting".
    assert (await trainer.post("no_such_operation", {})).status_code == 422
    assert (await loops.client.get("/api/v1/healthz")).status_code == 200


async def test_urls_are_those_that_the_caller_can_reach(open_loops: Any) -> None:
    async with open_loops(public_url="https://gateway.example/loops-here") as loops:
        run = (await loops.trainer(init=False)).run
        assert run["base_url"] == f"https://gateway.example/loops-here/loops/trainers/{run['id']}"
        sampler = await loops.sampler()
        assert sampler["base_url"].startswith("https://gateway.example/loops-here/loops/samplers/")


async def test_what_is_known_of_runs_that_are_asked_for_is_bounded(
    loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_GENERATIONS_KNOWN", 2)
    known = runs.Runs(loops.gateway)
    for number in range(5):
        path = f"bt://loops:s-1:train:{number}/weights/ck"
        assert await known.canonical("path", path) == f"tinker://s-1:train:{number}/weights/ck"
    assert len(known._generations) == 2
