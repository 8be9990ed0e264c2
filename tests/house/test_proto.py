"""`make proto-check` notices stale code, and a contract that breaks its clients."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPERATION = "proto/tinkergate/v1/operation.proto"


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The contract, its generated code and the generator, to be spoilt."""
    for folder in ("proto", "gateway/tinkergate/v1", "gateway/tinkergate/dialects"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / folder, tmp_path / folder, ignore=ignored)
    (tmp_path / "scripts").mkdir()
    shutil.copy(root / "scripts" / "generate_proto.py", tmp_path / "scripts")
    return tmp_path


def generate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the generator of `folder`."""
    script = folder / "scripts" / "generate_proto.py"
    return subprocess.run([sys.executable, script, *options], capture_output=True, text=True)


def buf(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run buf in `folder`."""
    program = Path(sys.executable).with_name("buf")
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)


def breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    """Hold the contract of `folder` against its baseline, as the Makefile does."""
    return buf(folder, "breaking", "proto", "--against", "proto/baseline.binpb")


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_code_that_was_edited_is_noticed_and_mended(copy: Path) -> None:
    assert generate(copy, "--check").returncode == 0
    package = copy / "gateway" / "tinkergate" / "v1"
    before = {file.name: file.read_bytes() for file in package.iterdir()}
    replace(package / "__init__.py", '    "ArrayRecord",\n', "")
    (package / "forgotten_pb2.py").touch()
    result = generate(copy, "--check")
    assert result.returncode == 1
    assert "__init__.py, forgotten_pb2.py" in result.stderr
    assert generate(copy).returncode == 0
    assert {file.name: file.read_bytes() for file in package.iterdir()} == before


def test_a_contract_that_grew_is_noticed_and_generated(copy: Path) -> None:
    grown = "  // The canonical path of the checkpoint that was loaded.\n  string path = 1;\n"
    more = "  // How many steps it has taken.\n  int64 steps = 100;\n"
    replace(copy / OPERATION, grown, grown + more)
    assert generate(copy, "--check").returncode == 1
    assert generate(copy).returncode == 0
    assert generate(copy, "--check").returncode == 0
    assert buf(copy, "lint", "proto").stdout == ""
    assert breaking(copy).returncode == 0, "growing breaks nobody"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("double> metrics = 3;", "float> metrics = 3;"),
        ("int64 num_datums = 3;", "int64 num_datums = 4;"),
        ("OPERATION_KIND_FORWARD = 3;", "OPERATION_KIND_FORWARDS = 3;"),
        (
            "  // Whether there was a result that is no longer kept.\n"
            "  bool result_expired = 19;\n",
            "",
        ),
    ],
)
def test_a_contract_that_breaks_clients_is_noticed(copy: Path, old: str, new: str) -> None:
    assert breaking(copy).returncode == 0
    replace(copy / OPERATION, old, new)
    result = breaking(copy)
    assert result.returncode == 100
    assert "operation.proto" in result.stdout


def test_an_element_without_a_comment_is_noticed(copy: Path) -> None:
    replace(copy / OPERATION, "  // How many datums the record covers.\n", "")
    result = buf(copy, "lint", "proto")
    assert result.returncode == 100
    assert "num_datums" in result.stdout
