"""The project as files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What the project does not keep, as .gitignore says.
SKIPPED = {ROOT / "build", ROOT / "dist", ROOT / "data"}


def _walk(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        hidden = entry.name.startswith(".") and entry.name not in (".ci", ".gitignore")
        built = entry.name == "__pycache__" or entry.name.endswith(".egg-info")
        if hidden or built or Path(entry.path) in SKIPPED:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file of the project, hidden and generated folders left out."""
    return sorted(_walk(ROOT))
