"""What we ship: the wheel holds the three packages, whole, and works where it is installed."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import tinkergate

PACKAGES = {
    "tinkergate": "gateway/tinkergate",
    "tinkergate_kernels": "kernels/tinkergate_kernels",
    "tinkergate_client": "clients/python/tinkergate_client",
}

REPORT = """
import sys
target = sys.argv[1]
sys.path.insert(0, target)
import importlib.metadata, tinkergate, tinkergate.v1, tinkergate_client
for module in (tinkergate, tinkergate.v1, tinkergate_client):
    assert module.__file__.startswith(target), module.__file__
print(importlib.metadata.version("tinkergate"), tinkergate.__version__)
"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without a network."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target],
        cwd=root,
        check=True,
        capture_output=True,
    )
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, object]:
    """The `project` table of pyproject.toml."""
    table: dict[str, object] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


def test_it_holds_our_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_it_holds_every_file_of_a_package(root: Path, wheel: Path, package: str) -> None:
    """Modules, type stubs, migrations, the typing marker: whatever the source tree has."""
    source = root / PACKAGES[package]
    expected = {
        f"{package}/{file.relative_to(source)}"
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert f"{package}/py.typed" in expected
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f"{package}/")}
    assert packed == expected


def test_it_holds_migrations_licence_and_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert any(re.match(r"tinkergate/store/migrations/versions/\w+\.py$", name) for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(entry_points).decode())
    assert dict(parser["console_scripts"]) == {"tinkergate": "tinkergate.cli.main:main"}


def test_it_works_where_it_is_installed(
    wheel: Path, tmp_path: Path, project: dict[str, object]
) -> None:
    uv = [sys.executable, "-m", "uv", "--quiet", "pip", "install", "--offline", "--no-deps"]
    subprocess.run([*uv, "--target", tmp_path, wheel], check=True, cwd=tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", REPORT, tmp_path], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [project["version"], project["version"]]


def test_versions_agree(root: Path, project: dict[str, object]) -> None:
    assert tinkergate.__version__ == project["version"]
    released = re.findall(r"^## \[(.+?)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == project["version"], "the newest entry of the changelog is this version"


def test_the_readme_and_licence_of_the_metadata_exist(
    root: Path, project: dict[str, object]
) -> None:
    assert (root / str(project["readme"])).read_text().startswith("# ")
    assert "Apache License" in (root / "LICENSE").read_text()
