"""Make the environments of the SDKs that the HTTP doors are tested with.

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

An SDK that asks for a newer Python than the project's gets one: `TINKERGATE_PYTHON312` may name it,
else it is looked for. PyTorch is built for one version of Python, so such an environment has
PyTorch itself from the index, the same one by the same hash; the three gigabytes of CUDA libraries
beside it are no Python, and are the project's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setup import BIN, REQUIREMENTS, ROOT, run, uv_environment

ENVIRONMENTS = ROOT / ".venv-interop"
PREFIX = "interop-"
TORCH_PTH = "pytorch-of-the-project.pth"
CUDA = "nvidia"
"""The folder of CUDA's libraries, which PyTorch finds beside itself."""

NEWER = {"baseten-loops-0.32.0": (3, 12)}
"""The SDKs that ask for a newer Python than the project does."""
NAMED = "TINKERGATE_PYTHON312"
"""The variable that may name a Python for them."""
NO_PYTHON = 77
"""The exit status where there is none."""


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
    interpreter = _interpreter(name)
    folder = ENVIRONMENTS / name
    # The stamp is written last and holds what the environment was made of.
    stamp, made_of = folder / ".made-of", _made_of(requirements, interpreter)
    with _lock(name):
        if stamp.is_file() and stamp.read_text() == made_of:
            return False
        environment = _environment()
        uv = BIN / "uv"
        python = folder / "bin" / "python"
        quiet = ["--quiet", "--no-progress"]
        chosen = ["--python", interpreter, "--clear"]
        run(uv, "venv", *quiet, *chosen, folder, environment=environment)
        there: list[str | Path] = ["--python", python]
        strict = ["--require-hashes", "--compile-bytecode"]
        run(uv, "pip", "sync", *quiet, *there, *strict, requirements, environment=environment)
        if interpreter == sys.executable:
            own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
            (own / TORCH_PTH).write_text(sysconfig.get_path("purelib") + "\n")
        else:
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
                pinned.write(_pinned_torch())
                pinned.flush()
                plain = ["--no-deps", *strict, "-r"]
                run(
                    uv,
                    "pip",
                    "install",
                    *quiet,
                    *there,
                    *plain,
                    pinned.name,
                    environment=environment,
                )
            _link_cuda(folder)
        stamp.write_text(made_of)
    return True


def _made_of(requirements: Path, interpreter: str) -> str:
    parts = [requirements.read_bytes(), Path(__file__).read_bytes()]
    if interpreter != sys.executable:
        parts.append(_pinned_torch().encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"{digest} {sys.version.split()[0]} {sys.prefix} {interpreter}\n"


def _interpreter(name: str) -> str:
    """The Python that an SDK's environment is made of: the project's if it is new enough."""
    least = NEWER.get(name)
    if least is None or sys.version_info >= least:
        return sys.executable
    for candidate in _candidates(least):
        if _version(candidate) >= least:
            return str(candidate)
    asked = ".".join(map(str, least))
    print(f"interop: {name} needs Python {asked} or newer; name one by {NAMED}", file=sys.stderr)
    raise SystemExit(NO_PYTHON)


def _candidates(least: tuple[int, int]) -> Iterator[Path]:
    """Where a newer Python may be: where the variable says, on the path, and where pyenv and uv
    put theirs."""
    if NAMED in os.environ:
        yield Path(os.environ[NAMED])
        return
    for minor in range(least[1], least[1] + 3):
        if found := shutil.which(f"python3.{minor}"):
            yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    managed = subprocess.run([BIN / "uv", "python", "dir"], capture_output=True, text=True)
    for place in (pyenv / "versions", Path(managed.stdout.strip() or os.devnull)):
        for minor in range(least[1], least[1] + 3):
            yield from sorted(place.glob(f"*3.{minor}.*/bin/python3"), reverse=True)


def _version(python: Path) -> tuple[int, ...]:
    """The version of a Python; nothing for what is none, as the shims of pyenv may be."""
    asked = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    except OSError:
        return ()
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()


def _pinned_torch() -> str:
    """The lines of the project's own list that pin PyTorch."""
    text = (REQUIREMENTS / "dev.txt").read_text()
    found = re.search(r"^torch==.*\n(?: +--hash=.*\n)+", text, re.MULTILINE)
    if found is None:
        raise SystemExit("interop: requirements/dev.txt pins no torch")
    return found[0].rstrip().rstrip("\\") + "\n"


def _link_cuda(folder: Path) -> None:
    """Have PyTorch find the project's CUDA libraries, where it asks for any."""
    cuda = Path(sysconfig.get_path("purelib")) / CUDA
    (own,) = folder.glob("lib/python3.*/site-packages")
    if cuda.is_dir() and not (own / CUDA).exists():
        (own / CUDA).symlink_to(cuda)


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
