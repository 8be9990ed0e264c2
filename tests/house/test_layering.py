"""The import rules of docs/architecture.md hold, and breaking one is noticed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = {
    "tinkergate": "gateway/tinkergate",
    "tinkergate_kernels": "kernels/tinkergate_kernels",
    "tinkergate_client": "clients/python/tinkergate_client",
}


def lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run import-linter by the settings in `folder` on the packages that `folder` holds."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def skeleton(root: Path, tmp_path: Path) -> Path:
    """A copy of our three packages in which every module is empty, with the real settings."""
    for name, place in PACKAGES.items():
        for module in (root / place).rglob("*.py"):
            copy = tmp_path / name / module.relative_to(root / place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.touch()
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_rules_hold(root: Path) -> None:
    result = lint_imports(root)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("contract", "module", "statement"),
    [
        ("rooms", "tinkergate/tensors.py", "import tinkergate.core"),
        ("rooms", "tinkergate/store/intruder.py", "import tinkergate.core"),
        ("rooms", "tinkergate/engine/intruder.py", "import tinkergate.store"),
        ("rooms", "tinkergate/a_room_without_a_place.py", ""),
        ("core-sees-no-adapter", "tinkergate/core/intruder.py", "import tinkergate.backends.local"),
        ("core-sees-no-adapter", "tinkergate/core/intruder.py", "import tinkergate.engine"),
        ("core-sees-no-adapter", "tinkergate/core/intruder.py", "import torch"),
        ("doors-see-the-core", "tinkergate/ingress/intruder.py", "import tinkergate.store"),
        ("doors-see-the-core", "tinkergate/ingress/intruder.py", "import tinkergate.backends.base"),
        ("backends-hold-no-state", "tinkergate/backends/local/x.py", "import tinkergate.store"),
        ("adapters-are-alone", "tinkergate/backends/base.py", "import tinkergate.backends.local"),
        ("engine-speaks-arrays", "tinkergate/engine/intruder.py", "import tinkergate.v1"),
        ("engine-speaks-arrays", "tinkergate/engine/intruder.py", "from google import protobuf"),
        ("kernels-stand-alone", "tinkergate_kernels/intruder.py", "from tinkergate import errors"),
        ("client-stands-alone", "tinkergate_client/intruder.py", "from tinkergate import errors"),
        ("client-stands-alone", "tinkergate_client/intruder.py", "import tinkergate.core"),
        ("commands-are-clients", "tinkergate/cli/intruder.py", "import tinkergate.core"),
        (
            "generated-code-has-one-door",
            "tinkergate/core/intruder.py",
            "from tinkergate.v1 import tensor_pb2",
        ),
    ],
)
def test_breaking_a_rule_is_noticed(
    skeleton: Path, contract: str, module: str, statement: str
) -> None:
    (skeleton / module).write_text(f"{statement}\n")
    result = lint_imports(skeleton, "--contract", contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "0 kept, 1 broken" in result.stdout
    assert module.removesuffix(".py").replace("/", ".") in result.stdout


def test_every_room_is_described(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rooms,) = (contract for contract in settings["contracts"] if contract["id"] == "rooms")
    names = re.findall(r"\w+", " ".join(rooms["layers"]))
    table = "\n".join(re.findall(r"^\| `.*", (root / "docs/architecture.md").read_text(), re.M))
    described = set(re.findall(r"\w+", table))
    assert [name for name in names if name not in described and name != "__main__"] == []
    assert PACKAGES.keys() - {"tinkergate"} <= described


def test_what_the_rules_allow_is_let_through(skeleton: Path) -> None:
    allowed = {
        "tinkergate/core/guest.py": "import tinkergate.backends.base, tinkergate.store",
        "tinkergate/ingress/guest.py": "import tinkergate.core, tinkergate.v1",
        "tinkergate/backends/local/guest.py": "import tinkergate.engine, tinkergate.tensors",
        "tinkergate/engine/guest.py": "import tinkergate_kernels, tinkergate.errors, torch",
        "tinkergate/cli/guest.py": "import tinkergate_client, tinkergate.config",
        "tinkergate_client/guest.py": "import tinkergate.tensors\nfrom tinkergate import v1",
    }
    for module, statement in allowed.items():
        (skeleton / module).write_text(f"{statement}\n")
    result = lint_imports(skeleton)
    assert result.returncode == 0, result.stdout
