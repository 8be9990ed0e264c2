"""The rest client and the SDK's own command."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from compatibility import proves_at_doors
from interop_sdk import NEWEST, TINKERS, Sdk, one

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("door", ["direct", "tinker", "mint", "loops"], indirect=True)
@proves_at_doors("rest_runs", local="native", tinker="gateway", mint="gateway", loops="gateway")
@proves_at_doors(
    "rest_checkpoints", local="native", tinker="gateway", mint="gateway", loops="gateway"
)
@proves_at_doors("download", local="native", tinker="gateway", mint="gateway", loops="gateway")
def test_runs_checkpoints_and_files(request: pytest.FixtureRequest, sdk: Sdk) -> None:
    door = request.node.callspec.params["door"]
    external = door not in ("mint", "loops")
    seen = sdk.run("console", external=external)
    made = one(seen, "made")
    run = one(seen, "run")
    assert run["id"] == run["by_path"] == made["model_id"]
    assert run["base_model"] == run["expected"]
    assert (run["is_lora"], run["lora_rank"], run["corrupted"]) == (True, 8, False)
    assert run["metadata"] == {"note": "one"}
    state, weights = run["last"]
    assert (state["path"], state["type"], state["id"]) == (
        made["state"],
        "training",
        "weights/state",
    )
    assert (weights["path"], weights["type"], weights["id"]) == (
        made["weights"],
        "sampler",
        "sampler_weights/weights",
    )
    if door == "direct":  # a service beyond the gateway does not tell sizes when it saves
        assert state["size"] > weights["size"] > 0, "with the optimizer's state"
    assert (state["expires"], weights["expires"]) == (False, True)
    assert state["zone"]
    runs = one(seen, "runs")
    assert runs["ids"] == [made["model_id"]], "the newest first"
    assert runs["cursor"]["limit"] == 1
    assert runs["cursor"]["total_count"] >= 1
    entries = {entry["path"]: entry for entry in one(seen, "checkpoints")["entries"]}
    assert entries == {made["state"]: state, made["weights"]: weights}
    assert {made["state"], made["weights"]} <= set(one(seen, "user checkpoints")["paths"])
    assert one(seen, "session")["runs"] == [made["model_id"]]
    assert made["sampler_id"] in one(seen, "session")["samplers"]
    assert one(seen, "sessions")["found"]
    sampler = one(seen, "sampler")
    assert (sampler["id"], sampler["base_model"], sampler["path"]) == (
        made["sampler_id"],
        run["base_model"],
        made["weights"],
    )
    assert one(seen, "published")["public"] is True
    assert one(seen, "unpublished")["public"] is False
    assert one(seen, "expiring")["expires"] is True
    assert one(seen, "kept")["expires"] is False
    assert one(seen, "deleted")["left"] == [
        path for path in one(seen, "deleted")["left"] if path != made["state"]
    ]
    assert made["weights"] in one(seen, "deleted")["left"]
    assert one(seen, "deleted twice")["failure"]["status"] == 404
    assert one(seen, "no such run")["failure"]["status"] == 404
    if sdk.name != NEWEST:
        assert set(one(seen, "archive")["files"]) >= ADAPTER
    elif not external:
        failure = one(seen, "no external")["failure"]["message"]
        assert f"backend '{door}' does not support" in failure
    else:
        outside = one(seen, "external")
        assert outside["path"] == f"tinker://{made['model_id']}/external_weights/outside"
        assert set(outside["files"]) >= ADAPTER
        assert one(seen, "copied")["path"].startswith("tinker://")
        assert made["model_id"] not in one(seen, "copied")["path"]


def test_the_sdks_own_command(direct_sdk: Sdk, direct: Any, tmp_path: Path) -> None:
    made = one(direct_sdk.run("saving"), "made")
    runs = direct_sdk.command_json("run", "list")["runs"]
    assert made["model_id"] in [run["training_run_id"] for run in runs]
    run = direct_sdk.command_json("run", "info", made["model_id"])
    assert made["model_id"] in str(run)
    listed = direct_sdk.command_json("checkpoint", "list", "--run-id", made["model_id"])
    assert made["state"] in [entry["tinker_path"] for entry in listed["checkpoints"]]
    info = direct_sdk.command_json("checkpoint", "info", made["state"])
    assert made["state"] in str(info)
    table = direct_sdk.command("run", "list")
    assert table.returncode == 0, table.stderr

    done = direct_sdk.command(*("checkpoint", "download", made["state"], "--output", str(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    assert set(digests(folder)) >= ADAPTER
    stored = [digests(config.parent) for config in direct.data_dir.rglob("adapter_config.json")]
    weights = digests(folder)["adapter_model.safetensors"]
    assert weights in [files["adapter_model.safetensors"] for files in stored]

    for arguments in (("set-ttl", made["state"], "--ttl", "7200"), ("publish", made["state"])):
        done = direct_sdk.command("checkpoint", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    # 0.22.0 deletes by run only: where it is given paths it calls its own command `list` on them.
    by_run = direct_sdk.name == TINKERS[0]
    which = ("--run-id", made["model_id"]) if by_run else (made["state"],)
    done = direct_sdk.command("checkpoint", "delete", *which, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = direct_sdk.command_json("checkpoint", "list", "--run-id", made["model_id"])
    assert listed["checkpoints"] == []
    if direct_sdk.name == NEWEST:
        models = direct_sdk.command_json("model", "list")["models"]
        (model,) = (one for one in models if one["model_name"] == direct_sdk.base_model)
        assert model["trainable"]
        assert model["sampleable"]


@pytest.mark.parametrize("tinker", [NEWEST], indirect=True)
def test_a_command_with_a_wrong_key(direct_sdk: Sdk) -> None:
    direct_sdk.key = "tml-stranger"
    done = direct_sdk.command("run", "list")
    assert done.returncode != 0
    assert "traceback" not in (done.stdout + done.stderr).lower()
