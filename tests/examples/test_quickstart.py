"""What `make run` does, with fewer steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.mark.slow
def test_the_default_model_learns_and_the_program_ends_well(
    default_model_dir: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(QUICKSTART), "--steps", "15", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (losses,) = re.findall(r"^loss ([\d.]+) -> ([\d.]+) in ", done.stdout, re.MULTILINE)
    first, last = map(float, losses)
    assert last < first / 2
    for when in ("before", "after"):
        assert len(re.findall(rf"^ *{when}  ", done.stdout, re.MULTILINE)) == 3
    (saved,) = re.findall(r"^saved (tinker://\S+/weights/pig-latin)$", done.stdout, re.MULTILINE)
    assert f"--model-path {saved}" in done.stdout.split("Three things to try next")[1]
