"""Folders are there whole or not at all: savers are killed at every step and at any time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinkergate.engine.atomic_folder import AlreadyThereError, remove, sweep, writing


def write(folder: Path, text: str, *, overwrite: bool = False) -> None:
    with writing(folder, overwrite=overwrite) as partial:
        (partial / "file").write_text(text)
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text(text)


def read(folder: Path) -> str:
    text = (folder / "file").read_text()
    assert (folder / "inner" / "file").read_text() == text
    return text


def test_written_overwritten_removed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "a"
    write(folder, "one")
    with pytest.raises(AlreadyThereError):
        write(folder, "two")
    assert read(folder) == "one"
    write(folder, "two", overwrite=True)
    assert read(folder) == "two"
    remove(folder)
    remove(folder)
    assert list(folder.parent.iterdir()) == []


def test_a_failing_writer_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", "one")

    def fail() -> None:
        with writing(tmp_path / "a", overwrite=True) as partial:
            (partial / "file").write_text("two")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read(tmp_path / "a") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    def write_slowly() -> None:
        with writing(tmp_path / "a", overwrite=False) as partial:
            (partial / "file").write_text("slow")
            write(tmp_path / "a", "quick")

    with pytest.raises(AlreadyThereError):
        write_slowly()
    assert read(tmp_path / "a") == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_sweep_spares_running_writers_and_strangers(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".a.partial").mkdir()
    with writing(tmp_path / "a", overwrite=False) as partial:
        (partial / "file").write_text("one")
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("one")
        assert sweep(tmp_path) == []
    assert read(tmp_path / "a") == "one"
    assert sweep(tmp_path / "missing") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.partial", ".hidden", "a"]


def test_what_was_moved_aside_comes_back(tmp_path: Path) -> None:
    token = "0123456789abcdef"
    write(tmp_path / "a", "one")
    (tmp_path / "a").rename(tmp_path / f".a.{token}.replaced")
    write(tmp_path / f".a.{token}.partial", "two")
    with _locked(tmp_path / f".a.{token}.partial"):
        assert sweep(tmp_path) == []
    assert len(sweep(tmp_path)) == 2
    assert read(tmp_path / "a") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


SAVER = """
import itertools, os, signal, sys, time
from pathlib import Path
import torch
from tinkergate.engine import checkpoint
from tinkergate.engine.optimizer import OptimizerState

torch.set_num_threads(1)
key = "base_model.model.model.layers.0.mlp.up_proj.lora_"
config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
config["task_type"] = "CAUSAL_LM"

def save(value):
    rows = 50_000 if mode == "times" else 4
    weights = {key + "A.weight": torch.full((2, rows), float(value)),
               key + "B.weight": torch.full((rows, 2), float(value))}
    checkpoint.save(folder, adapter_config=config, weights=weights, metadata={"value": value},
                    optimizer=OptimizerState(value, weights, weights), overwrite=True)

def value_now():
    # The value of the checkpoint, the same in all its parts; 0 if there is none.
    if not folder.exists():
        return 0
    loaded = checkpoint.load(folder)
    value = loaded.metadata["value"]
    tensors = [*loaded.weights.values(), *loaded.optimizer.exp_avg.values()]
    assert all((tensor == value).all() for tensor in tensors)
    assert loaded.optimizer.step == value
    return value

def save_until_killed_at(step):
    left = step
    def count(event, arguments):
        nonlocal left
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.")):
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    save(2)

def save_on_and_on(value, told):
    for more in itertools.count(value):
        save(more)
        os.write(told, b".")

def fork(work, *arguments):
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child

def outcome(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def check(before):
    gap = before > 0 and value_now() == 0
    checkpoint.sweep(folder.parent)
    now = value_now()
    assert now >= before, (now, before)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name] * (now > 0)
    return now, gap

def kill_at_times():
    began = time.monotonic()
    save(1)
    duration, now = time.monotonic() - began, 1
    for turn in range(40):
        heard, told = os.pipe()
        child = fork(save_on_and_on, (turn + 1) * 1000, told)
        # In the first or a later save, after another part of the time that one takes.
        for _ in range(turn % 3):
            os.read(heard, 1)
        time.sleep(duration * (turn % 13) / 13)
        os.kill(child, signal.SIGKILL)
        assert outcome(child) == -signal.SIGKILL
        os.close(heard)
        os.close(told)
        now, gap = check(now)
        yield now, gap

def kill_at_steps():
    for step in itertools.count():
        before = mode == "overwrite"
        checkpoint.remove(folder)
        if before:
            assert outcome(fork(save, 1)) == 0
        code = outcome(fork(save_until_killed_at, step))
        yield check(before)
        if code == 0:
            break
        assert code == -signal.SIGKILL

for mode in ("fresh", "overwrite", "times"):
    folder = Path(sys.argv[1]) / mode / "a"
    folder.parent.mkdir()
    seen = list(kill_at_times() if mode == "times" else kill_at_steps())
    values, gaps = zip(*seen)
    print(mode, len(seen), len(set(values)), sum(gaps))
"""


def test_killed_savers_leave_only_checkpoints_that_load(tmp_path: Path) -> None:
    """Savers are killed at every file operation in turn until one gets through, with nothing
    there before or an older checkpoint; and after various times. What is there then loads, and is
    the older or the newer one."""
    done = subprocess.run([sys.executable, "-c", SAVER, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = {}
    for line in done.stdout.splitlines():
        mode, *numbers = line.split()
        outcomes[mode] = [int(number) for number in numbers]
    assert outcomes.keys() == {"fresh", "overwrite", "times"}
    for kills, values, _ in outcomes.values():
        assert kills >= 20
        assert values >= 2
    # The old one was moved aside and the new one not yet in its place: that was hit, and mended.
    assert outcomes["overwrite"][2] >= 1
