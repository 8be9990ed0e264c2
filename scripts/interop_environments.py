"""Make the environments of the SDKs that the Tinker-dialect door is tested with.

`.venv-interop/<name>` gets exactly what `requirements/interop-<name>.txt` lists: the SDK as it was
published and what it asks for, unchanged. It is made anew when that list, this script or the
interpreter changes, and is left alone otherwise. Names may be given as arguments; without, all are
made. Prints one line per environment.

PyTorch is not installed a second time. What an SDK needs of it (custom losses are computed in the
client) comes from `.venv` through one line in a .pth file, which Python reads after the
environment's own folder: so the SDK's own packages win, a fresh clone needs neither five times five
gigabytes nor a second resolution of PyTorch's, and it is the one that `make setup` pinned. Python
does not read .pth files in a folder that was itself added by one, so the project is not importable
there: what a program does, it does over the wire.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setup import BIN, REQUIREMENTS, ROOT, run, uv_environment

ENVIRONMENTS = ROOT / ".venv-interop"
PREFIX = "interop-"
TORCH_PTH = "pytorch-of-the-project.pth"


def names() -> list[str]:
    """The environments there are: one for each pinned list."""
    found = REQUIREMENTS.glob(f"{PREFIX}*.txt")
    return sorted(path.stem.removeprefix(PREFIX) for path in found)


def make(name: str) -> bool:
    """Make the environment unless it is there, whole and up to date. Answers whether it did.

    `SystemExit` tells what went wrong. Two processes that make one at a time wait for each other.
    """
    requirements = REQUIREMENTS / f"{PREFIX}{name}.txt"
    if not requirements.is_file():
        raise SystemExit(f"interop: there is no {requirements.name}; there are {names()}")
    folder = ENVIRONMENTS / name
    # The stamp is written last and holds what the environment was made of.
    stamp, made_of = folder / ".made-of", _made_of(requirements)
    with _lock(name):
        if stamp.is_file() and stamp.read_text() == made_of:
            return False
        environment = _environment()
        uv = BIN / "uv"
        python = folder / "bin" / "python"
        quiet = ["--quiet", "--no-progress"]
        interpreter = ["--python", sys.executable, "--clear"]
        run(uv, "venv", *quiet, *interpreter, folder, environment=environment)
        there: list[str | Path] = ["--python", python]
        strict = ["--require-hashes", "--compile-bytecode"]
        run(uv, "pip", "sync", *quiet, *there, *strict, requirements, environment=environment)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (own / TORCH_PTH).write_text(sysconfig.get_path("purelib") + "\n")
        stamp.write_text(made_of)
    return True


def _made_of(requirements: Path) -> str:
    parts = [requirements.read_bytes(), Path(__file__).read_bytes()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"{digest} {sys.version.split()[0]} {sys.prefix}\n"


def _environment() -> dict[str, str]:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    config = subprocess.run(pip, capture_output=True, text=True, check=True)
    return uv_environment(config.stdout, dict(os.environ))


@contextmanager
def _lock(name: str) -> Iterator[None]:
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    if Path(sys.prefix) != ROOT / ".venv":
        raise SystemExit("interop: run this with .venv/bin/python, whose PyTorch the SDKs use")
    for name in sys.argv[1:] or names():
        start = time.monotonic()
        made = make(name)
        done = f"made in {time.monotonic() - start:.1f} s" if made else "up to date"
        print(f"interop: {name} {done}", flush=True)


if __name__ == "__main__":
    main()
