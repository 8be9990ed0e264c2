from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinkergate.store import DataDirInUseError, DataDirLock


def test_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with DataDirLock(folder), pytest.raises(DataDirInUseError, match=f"process {os.getpid()}"):
        DataDirLock(folder)
    with DataDirLock(folder) as lock:
        lock.release()
        lock.release()


def test_a_process_that_is_killed_gives_it_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tinkergate.store import DataDirLock; "
        f"lock = DataDirLock(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataDirInUseError, match=f"process {holder.pid}"):
            DataDirLock(tmp_path)
        holder.kill()
        holder.wait()
        DataDirLock(tmp_path).release()
