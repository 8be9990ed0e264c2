"""Generate the Go code of the contract, by plugins of pinned versions.

    generate_go.py          write clients/go/v1
    generate_go.py --check  fail if clients/go/v1 is not what would be written

Needs Go. The plugins are built once, into .cache/go-plugins.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
PACKAGE = Path("tinkergate/v1")
MODULE = "tinkergate.example/tinkergate"
GENERATED = ROOT / "clients" / "go" / "v1"
PLUGINS = ROOT / ".cache" / "go-plugins"
VERSIONS = {
    "google.golang.org/protobuf/cmd/protoc-gen-go": "v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc": "v1.6.2",
}


def plugin(package: str, version: str) -> Path:
    """The program of that package and version, built if it is not there."""
    folder = PLUGINS / version
    program = folder / package.rpartition("/")[2]
    if not program.exists():
        command = ["go", "install", "-p", "1", f"{package}@{version}"]
        subprocess.run(command, env={**os.environ, "GOBIN": str(folder)}, cwd="/", check=True)
    return program


def generate() -> dict[str, str]:
    """The text of every generated file by its name."""
    files = [file.relative_to(PROTO) for file in sorted((PROTO / PACKAGE).glob("*.proto"))]
    places = [f"M{file}={MODULE}/v1;tinkergatev1" for file in files]
    options = ",".join([f"module={MODULE}", *places])
    plugins = [plugin(package, version) for package, version in VERSIONS.items()]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "protoc",
            f"-I{PROTO}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            *(f"--plugin={program.name}={program}" for program in plugins),
            f"--go_out={options}:{folder}",
            f"--go-grpc_out={options}:{folder}",
            *map(str, files),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")
        return contents(Path(folder) / "v1")


def contents(folder: Path) -> dict[str, str]:
    """The text of every generated file inside `folder` by its name."""
    return {file.name: file.read_text() for file in folder.glob("*.pb.go")}


def main() -> None:
    if shutil.which("go") is None:
        raise SystemExit("Go is not installed: there is no `go` on the PATH")
    fresh, found = generate(), contents(GENERATED)
    stale = sorted(name for name in fresh | found if fresh.get(name) != found.get(name))
    if sys.argv[1:] == ["--check"]:
        if stale:
            raise SystemExit(f"run `make proto-go`: not as generated are {', '.join(stale)}")
        return
    GENERATED.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in fresh:
            (GENERATED / name).write_text(fresh[name])
        else:
            (GENERATED / name).unlink()


if __name__ == "__main__":
    main()
