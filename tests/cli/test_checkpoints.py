from __future__ import annotations

import hashlib
import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tinkergate_client import connect


@pytest.fixture
def saved(gateway_process: Any) -> str:
    with connect(gateway_process.address) as client, client.create_session() as session:
        return session.create_model(rank=2).save_state("kept").result()


def test_a_checkpoint_is_listed_shown_imported_and_deleted(
    tinkergate: Any, saved: str, gateway_process: Any
) -> None:
    model_id = saved.split("/")[2]
    listed = tinkergate("checkpoints", "list", "--model-id", model_id)
    assert listed.code == 0, listed.err
    assert listed.out.startswith(f"{saved}  training  ")
    (entry,) = map(
        json.loads,
        tinkergate("checkpoints", "list", "--model-id", model_id, "--json").out.splitlines(),
    )
    assert (entry["path"], entry["lora_rank"]) == (saved, 2)

    shown = tinkergate("checkpoints", "show", saved)
    assert shown.code == 0, shown.err
    assert saved in shown.out
    assert json.loads(tinkergate("checkpoints", "show", saved, "--json").out) == entry

    # On disk, the colons of a model id are escaped.
    found = gateway_process.data_dir.rglob("kept/adapter_config.json")
    (folder,) = [path.parent for path in found if model_id in unquote(str(path))]
    imported = tinkergate(
        "checkpoints",
        "import",
        folder,
        "--name",
        "again",
        "--json",
        "--base-model",
        entry["base_model"],
    )
    assert imported.code == 0, imported.err
    path = json.loads(imported.out)["path"]
    assert path.endswith("/weights/again")

    for each in (saved, path):
        assert tinkergate("checkpoints", "delete", each).out == f"deleted {each}\n"
    assert tinkergate("checkpoints", "show", saved).code == 1


def test_a_folder_without_an_adapter_is_refused(tinkergate: Any, tmp_path: Path) -> None:
    done = tinkergate("checkpoints", "import", tmp_path)
    assert done.code == 2
    assert "adapter_config.json is missing" in done.err


def test_a_checkpoint_is_published_kept_for_a_while_copied_and_looked_into(
    tinkergate: Any, saved: str
) -> None:
    def shown(*arguments: object) -> dict[str, Any]:
        done = tinkergate("checkpoints", *arguments, "--json")
        assert done.code == 0, done.err
        facts: dict[str, Any] = json.loads(done.out)
        return facts

    assert shown("publish", saved)["public"] is True
    refused = tinkergate("checkpoints", "publish", saved)
    assert refused.code == 1
    assert "is public already" in refused.err
    assert shown("unpublish", saved)["public"] is False
    ends = datetime.fromisoformat(shown("ttl", saved, "2h")["expires"])
    assert timedelta(hours=1.9) < ends - datetime.now(UTC) <= timedelta(hours=2)
    assert shown("ttl", saved, "never")["expires"] is None

    copied = shown("copy", saved, "--ttl", "7d")
    assert copied["copied_from"] == saved
    assert copied["expires"] is not None
    listed = tinkergate("checkpoints", "files", copied["path"])
    assert listed.code == 0, listed.err
    lines = [line.split() for line in listed.out.splitlines()]
    assert [line[-1] for line in lines] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "tinkergate.json",
    ]
    assert all(len(line[0]) == 64 for line in lines)
    (first, *_) = map(
        json.loads, tinkergate("checkpoints", "files", saved, "--json").out.splitlines()
    )
    assert first["sha256"] == lines[0][0]
    for path in (saved, copied["path"]):
        assert tinkergate("checkpoints", "delete", path).code == 0


def test_a_checkpoint_is_downloaded(
    tinkergate: Any, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [
        json.loads(line)
        for line in tinkergate("checkpoints", "files", saved, "--json").out.splitlines()
    ]
    assert {file["url"] for file in listed} == {""}  # There is no HTTP door.
    linked = tinkergate("checkpoints", "files", saved, "--links").out.splitlines()
    assert all(line.endswith("  -") for line in linked)

    monkeypatch.chdir(tmp_path)
    done = tinkergate("checkpoints", "download", saved)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == len(listed)
    for line, file in zip(lines, listed, strict=True):
        place = tmp_path / "kept" / file["name"]
        assert line.split()[0] == file["sha256"] == hashlib.sha256(place.read_bytes()).hexdigest()
        assert line.endswith(f"  kept/{file['name']}  (verified)")
    assert done.err.splitlines()[0].startswith("  0 %  0 B of ")
    assert done.err.splitlines()[-1].startswith("100 %  ")

    again = tinkergate("checkpoints", "download", saved)
    assert again.code == 2
    assert "is there already" in again.err
    assert "--overwrite" in again.err
    assert tinkergate("checkpoints", "download", saved, "--overwrite").code == 0

    done = tinkergate("checkpoints", "download", saved, "--to", tmp_path / "in" / "it", "--json")
    assert done.err == ""
    told = [json.loads(line) for line in done.out.splitlines()]
    assert told == [
        {
            "name": file["name"],
            "path": str(tmp_path / "in" / "it" / file["name"]),
            "size_bytes": file["size_bytes"],
            "sha256": file["sha256"],
            "verified": True,
        }
        for file in listed
    ]


def test_an_archive_is_downloaded(tinkergate: Any, saved: str, tmp_path: Path) -> None:
    file = tmp_path / "kept.tar.gz"
    done = tinkergate("checkpoints", "download", saved, "--archive", file)
    assert done.code == 0, done.err
    (line,) = done.out.splitlines()
    assert line.split()[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert line.endswith(f"  {file}  (verified)")
    with tarfile.open(file, "r:gz") as tar:
        assert "adapter_config.json" in tar.getnames()
    refused = tinkergate("checkpoints", "download", saved, "--archive", file)
    assert refused.code == 2
    told = tinkergate("checkpoints", "download", saved, "--archive", file, "--to", tmp_path)
    assert told.code == 2
    assert "exclude each other" in told.err


def test_a_download_that_cannot_be(tinkergate: Any, saved: str, tmp_path: Path) -> None:
    gone = tinkergate("checkpoints", "download", f"{saved}2", "--to", tmp_path / "a")
    assert gone.code == 1
    assert "there is no checkpoint" in gone.err
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    into = tinkergate("checkpoints", "download", saved, "--to", tmp_path / "file")
    assert into.code in (1, 2)
    assert str(tmp_path / "file") in into.err
    assert "Traceback" not in into.err


@pytest.mark.parametrize("life", ["2", "h", "1w", "-1h", "1.5h", ""])
def test_a_time_to_live_that_is_none(tinkergate: Any, life: str) -> None:
    done = tinkergate("checkpoints", "ttl", "tinker://s:train:0/weights/a", "--", life)
    assert done.code == 2
    assert "is no time to live" in done.err


def test_checkpoints_are_added_up(tinkergate: Any, saved: str) -> None:
    done = tinkergate(
        "checkpoints", "interpolate", f"{saved}=0.5", f"{saved}=-1.5", "--name", "sum"
    )
    assert done.code == 0, done.err
    assert "sampler_weights/sum" in done.out
    made = tinkergate("checkpoints", "interpolate", f"{saved}=1", "--training", "--json")
    entry = json.loads(made.out)
    assert (entry["type"], entry["lora_rank"]) == ("training", 2)
    for bad, told in ((saved, "PATH=COEFFICIENT"), (f"{saved}=much", "PATH=COEFFICIENT")):
        refused = tinkergate("checkpoints", "interpolate", bad)
        assert refused.code == 2
        assert told in refused.err
    assert tinkergate("checkpoints", "interpolate", f"{saved}=nan").code == 1
