"""One program gives the same numbers over every backend, from every door."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from interop_sdk import ready

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.slow
def test_twelve_runs_agree() -> None:
    for environment in ("tinker-0.38.0", "baseten-loops-0.32.0"):
        ready(environment)
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "fixtures")},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    rows = re.findall(
        r"^(grpc|tinker|loops) +(local|mint|tinker|loops)((?: +[\d.]+)+)$", done.stdout, re.M
    )
    assert len({(door, backend) for door, backend, _ in rows}) == len(rows) == 12
    for _, _, row in rows:
        losses = [float(word) for word in row.split()]
        assert len(losses) == 10
        assert sum(losses[-2:]) < sum(losses[:2])
