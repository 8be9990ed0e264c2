from __future__ import annotations

import json
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
