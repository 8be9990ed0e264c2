"""Our packages hide nobody else's.

`transformers` asks for a package named `kernels`, Google's clients import `proto`, and many wheels
ship `tests`: a folder of ours by such a name, if it can be imported as a package, breaks them.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

HOLDERS = ("gateway", "kernels", "clients", "proto", "tests", "examples", "scripts")
OURS = {"tinkergate", "tinkergate_kernels", "tinkergate_client"}

LOAD_A_MODEL = """
import sys
from pathlib import Path
assert sys.path[0] == "", "the working directory leads the path"
from transformers import AutoConfig, AutoModelForCausalLM
folder = sys.argv[1]
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
loaded = AutoModelForCausalLM.from_pretrained(folder)
assert {n for n, _ in model.named_parameters()} == {n for n, _ in loaded.named_parameters()}
for name in ("kernels", "proto", "tests"):
    # A folder without code may be found under that name; it then has no file, and runs nothing.
    file = getattr(sys.modules.get(name), "__file__", None)
    assert file is None or not Path(file).is_relative_to(Path.cwd()), (name, file)
"""


@pytest.mark.parametrize("folder", HOLDERS)
def test_folders_that_hold_packages_are_none(root: Path, folder: Path) -> None:
    assert not (root / folder / "__init__.py").exists()


def test_our_distribution_owns_our_three_packages_only() -> None:
    owned = {
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if "tinkergate" in owners
    }
    # An editable install lists no packages; the wheel's are checked in test_wheel.py.
    assert owned <= OURS


@pytest.mark.parametrize("package", sorted(OURS))
def test_our_packages_come_from_here(root: Path, package: str) -> None:
    """Run elsewhere, so that no folder name can stand in for an installed package."""
    script = f"import {package}; print({package}.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(root)


def test_transformers_loads_a_model_from_our_folder(root: Path, micro_model_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOAD_A_MODEL, str(micro_model_dir)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
