"""What the Makefile offers, what the README and CONTRIBUTING tell, and what .ci/run does agree."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

TARGET = re.compile(r"^([a-z][a-z-]*):(?!=)(.*)$", re.MULTILINE)
EXPECTED = {
    "help",
    "setup",
    "run",
    "serve",
    "test",
    "test-fast",
    "lint",
    "types",
    "proto",
    "proto-check",
    "bench",
    "requirements",
    "clean",
}


@pytest.fixture(scope="module")
def targets(root: Path) -> dict[str, str]:
    """The Makefile's targets, each with the rest of its line."""
    return dict(TARGET.findall((root / "Makefile").read_text()))


def make(root: Path, *arguments: str) -> str:
    """What make prints. MAKEFLAGS of a make above us would change that."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    result = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_target_has_a_help_text(root: Path, targets: dict[str, str]) -> None:
    assert targets.keys() >= EXPECTED
    assert [name for name, rest in targets.items() if not re.search(r"## [A-Z]", rest)] == []
    told = re.findall(r"^  make ([a-z-]+) ", make(root, "help"), re.MULTILINE)
    assert sorted(told) == sorted(targets)


def test_every_target_is_phony(root: Path, targets: dict[str, str]) -> None:
    declaration = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", (root / "Makefile").read_text(), re.M)
    assert declaration is not None
    assert set(declaration[1].replace("\\", " ").split()) == targets.keys()


def test_make_alone_prints_the_help(root: Path) -> None:
    assert make(root) == make(root, "help")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_targets_that_exist(
    root: Path, targets: dict[str, str], document: str
) -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code_of((root / document).read_text())))
    assert named
    assert named <= targets.keys()


def test_the_readme_tells_the_two_commands(root: Path) -> None:
    code = code_of((root / "README.md").read_text())
    assert "make run" in code
    assert "make test" in code


def test_what_make_test_leaves_to_people_is_told(root: Path, targets: dict[str, str]) -> None:
    """A target that is no part of `make test` and that nobody hears of is never run."""
    pages = (root / "README.md", root / "CONTRIBUTING.md")
    named = set(
        re.findall(r"\bmake ([a-z][a-z-]*)", code_of("".join(p.read_text() for p in pages)))
    )
    long_ones = {name for name in targets if name.startswith("bench")}
    long_ones |= {"chaos", "compatibility", "interop-tinker", "kernels-aot"}
    assert long_ones <= targets.keys()
    assert sorted(long_ones - named) == []


def test_make_test_runs_every_check(root: Path) -> None:
    """A dry run lists the commands: all checks of the house, then all tests."""
    commands = make(root, "-n", "test")
    for command in (
        "ruff check",
        "ruff format --check",
        "lint-imports",
        "/mypy",
        "buf lint",
        "buf format --diff --exit-code",
        "buf breaking",
        "generate_proto.py --check",
    ):
        assert command in commands, command
    last = commands.strip().splitlines()[-1]
    assert last.endswith("/pytest --compatibility check"), "all tests run, none are left out"


def test_scripts_that_targets_run_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    scripts = set(re.findall(r"\b((?:scripts|examples|tests)/[\w/]+\.py)\b", makefile))
    assert scripts
    assert [script for script in sorted(scripts) if not (root / script).is_file()] == []


def test_ci_runs_the_same_and_nothing_else(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert lines == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "exec make test </dev/null",
    ]


def code_of(markdown: str) -> str:
    """The code in a document: fenced blocks and inline code, without the shell's comments."""
    fence = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", fence.sub("", markdown))
    return re.sub(r"(^|\s)#.*", "", "\n".join([*fence.findall(markdown), *inline]))
