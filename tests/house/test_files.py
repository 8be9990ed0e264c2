"""Files are small, and nothing is in them that should not be."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

MOST_LINES = 500
MOST_BYTES = 1 << 20
MEDIAN_LINES = 250
WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx"}


def hand_written(root: Path, files: list[Path]) -> dict[Path, int]:
    """The Python files that people write, and how many lines each has."""
    generated = root / "gateway" / "tinkergate" / "v1"
    return {
        file.relative_to(root): len(file.read_text().splitlines())
        for file in files
        if file.suffix == ".py" and not file.is_relative_to(generated)
    }


def test_no_python_file_is_long(root: Path, project_files: list[Path]) -> None:
    lines = hand_written(root, project_files)
    assert {str(file): n for file, n in lines.items() if n > MOST_LINES} == {}
    assert statistics.median(lines.values()) <= MEDIAN_LINES


def test_the_contract_is_in_small_files(project_files: list[Path]) -> None:
    protos = [file for file in project_files if file.suffix == ".proto"]
    assert protos
    assert [file.name for file in protos if len(file.read_text().splitlines()) > MOST_LINES] == []


def test_no_file_is_large_and_none_holds_weights(project_files: list[Path]) -> None:
    assert [file for file in project_files if file.stat().st_size > MOST_BYTES] == []
    assert [file for file in project_files if file.suffix in WEIGHTS] == []


def test_modules_are_named_for_what_they_hold(project_files: list[Path]) -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|managers?|misc|common)$")
    assert [file for file in project_files if vague.search(file.stem)] == []


def test_requirements_are_pinned_by_hash_and_name_no_registry(root: Path) -> None:
    files = sorted((root / "requirements").glob("*.txt"))
    own = [file.name for file in files if not file.name.startswith("interop-")]
    assert own == ["bootstrap.txt", "dev.txt", "model.txt"]
    for file in files:
        text = file.read_text()
        assert "://" not in text
        assert not re.search(r"^\s*(-|--)[a-z]", text.replace("--hash=", ""), re.MULTILINE)
        # A requirement goes on over lines that end in a backslash; comments stand apart.
        requirements = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
        for line in requirements.splitlines():
            assert re.match(r"[a-z0-9._-]+==\S+ ", line), line
            assert " --hash=sha256:" in line, line


def test_settings_and_sources_name_no_registry(root: Path) -> None:
    settings = [root / "pyproject.toml", root / "Makefile", *(root / "requirements").iterdir()]
    for file in settings:
        assert not re.search(r"pypi\.|index-url|registry", file.read_text()), file.name


def test_every_package_is_typed(root: Path) -> None:
    for package in (
        "gateway/tinkergate",
        "kernels/tinkergate_kernels",
        "clients/python/tinkergate_client",
    ):
        assert (root / package / "py.typed").read_bytes() == b""


def test_tests_are_no_packages_and_mirror_the_rooms(root: Path) -> None:
    tests = root / "tests"
    assert list(tests.rglob("__init__.py")) == []
    stray = [
        file.relative_to(tests)
        for file in tests.rglob("*.py")
        if not {"bench", "chaos", "fixtures", "parity", "programs"}
        & set(file.relative_to(tests).parts)
        and file.name != "conftest.py"
        and not re.match(r"test_\w+\.py$", file.name)
    ]
    assert stray == []
