from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKERGATE_CACHE_DIR", str(tmp_path))


def test_a_model_is_added_found_and_removed(tinkergate: Any, micro_model_dir: Path) -> None:
    added = tinkergate(
        "models", "add", "mine/micro", micro_model_dir, "--alias", "small", address=""
    )
    assert added.code == 0, added.err
    for name in ("mine/micro", "small"):
        assert tinkergate("models", "path", name, address="").out == f"{micro_model_dir}\n"
    entries = [
        json.loads(line)
        for line in tinkergate("models", "list", "--json", address="").out.splitlines()
    ]
    assert entries[1] == {
        "name": "mine/micro",
        "aliases": ["small"],
        "source": str(micro_model_dir),
        "folder": str(micro_model_dir),
    }
    assert "mine/micro  (small)  " in tinkergate("models", "list", address="").out
    assert tinkergate("models", "remove", "small", address="").code == 0
    gone = tinkergate("models", "path", "mine/micro", address="")
    assert gone.code == 2
    assert "there is no base model 'mine/micro' here" in gone.err


def test_what_is_no_model_is_refused(tinkergate: Any, tmp_path: Path) -> None:
    done = tinkergate("models", "add", "bad", tmp_path, address="")
    assert done.code == 2
    assert str(tmp_path) in done.err
