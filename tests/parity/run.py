"""One program, four backends, three doors: twelve runs, the same losses.

    python tests/parity/run.py

Starts a gateway with the backends local, mint, tinker and loops, the last three being further
gateways that serve those dialects over their own embedded engines, and runs one lesson (10 steps
of supervised training, stopped and resumed in the middle, then a greedy sample) on each backend
through each door: by gRPC with the project's client, and by Tinker's and Loops' REST with the
official SDKs, unpatched, in environments of their own. Prints the losses, and exits non-zero
unless all agree within 1e-6 relative and all samples are the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gateway_process import Gateway
from micro_model import write_micro_model

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
BACKENDS = ("local", "mint", "tinker", "loops")
TOLERANCE = 1e-6
"""How far two losses may be apart, relative to the larger."""
TIME_LIMIT = 600.0

KEY = "tml-parity"
UPSTREAM_KEYS = {"mint": "sk-mint-parity", "tinker": "tml-upstream", "loops": "loops-upstream"}
UPSTREAM_NAME = "parity/base"
UPSTREAM_FLAGS = {"mint": ("--profile", "mint")}


class Door(NamedTuple):
    """A way into the gateway, and what goes through it."""

    program: str
    environment: str
    """Of the SDK, in `.venv-interop`; empty means the project's own."""


DOORS = {
    "grpc": Door("by_grpc", ""),
    "tinker": Door("by_tinker", "tinker-0.38.0"),
    "loops": Door("by_loops", "baseten-loops-0.32.0"),
}


class Told(NamedTuple):
    """What one run told."""

    door: str
    backend: str
    losses: list[float]
    tokens: list[int]
    logprobs: list[float]
    seconds: float


def upstream_config(model: str) -> str:
    """The TOML of a service: the one base model, under the name that services call it by."""
    return f'[models."{UPSTREAM_NAME}"]\nname = "{model}"\n'


def front_config(model: str, upstreams: dict[str, str]) -> str:
    """The TOML of the gateway in front: each backend, and its base model under a name of its own,
    by which programs that speak of no backends choose it."""
    parts = ['default_backend = "local"', f'[backends.local]\nkind = "local"\nmodels = ["{model}"]']
    for backend, address in upstreams.items():
        parts.append(
            f'[backends.{backend}]\nkind = "{backend}"\nbase_url = "http://{address}"\n'
            f'api_key_env = "UPSTREAM_{backend.upper()}"'
        )
    for backend, name in {"local": model, **dict.fromkeys(upstreams, UPSTREAM_NAME)}.items():
        parts.append(f'[models."parity/{backend}"]\nbackend = "{backend}"\nname = "{name}"')
    return "\n\n".join(parts) + "\n"


@contextmanager
def gateways(model: str, folder: Path, backends: Sequence[str], capacity: str) -> Iterator[Gateway]:
    """The gateway in front, with the services behind it that are asked for."""
    with ExitStack() as stack:

        def start(name: str, key: str, config: str, *flags: str, **environment: str) -> Gateway:
            file = folder / f"{name}.toml"
            file.write_text(config)
            gateway = Gateway(
                folder / name,
                *("--config", str(file), "--http", "127.0.0.1:0", *flags),
                environment=environment | {"TINKERGATE_API_KEY": key},
            )
            stack.callback(gateway.stop)
            return gateway

        upstreams = {}
        for name in [name for name in UPSTREAM_KEYS if name in backends]:
            flags = UPSTREAM_FLAGS.get(name, ())
            if name == "loops":
                flags = ("--loops-capacity", capacity)
            key = UPSTREAM_KEYS[name]
            upstreams[name] = start(name, key, upstream_config(model), *flags).http
        keys = {f"UPSTREAM_{name.upper()}": key for name, key in UPSTREAM_KEYS.items()}
        yield start("front", KEY, front_config(model, upstreams), **keys)


def run(front: Gateway, door_name: str, backend: str, home: Path) -> Told:
    """One run of the lesson."""
    door = DOORS[door_name]
    python = sys.executable
    if door.environment:
        python = str(ROOT / ".venv-interop" / door.environment / "bin" / "python")
    place = {
        "address": front.grpc if door_name == "grpc" else f"http://{front.http}",
        "key": KEY,
        "base_model": f"parity/{backend}",
        "run": f"{door_name}-{backend}",
    }
    # Nothing of this process's settings, and no way out.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PARITY_PLACE": json.dumps(place),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",
    }
    started = time.monotonic()
    done = subprocess.run(
        [python, str(PROGRAMS / f"{door.program}.py")],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    if done.returncode != 0:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        raise SystemExit(
            f"parity: {door_name} over {backend} ended with {done.returncode}:\n{said}"
        )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Told(door_name, backend, **told, seconds=time.monotonic() - started)


def spread(values: Sequence[float]) -> float:
    """How far the values are apart, relative to the largest."""
    return (max(values) - min(values)) / max(map(abs, values))


def report(runs: Sequence[Told]) -> bool:
    """Print the table. Answers whether all agree."""
    steps = len(runs[0].losses)
    head = "".join(f"{f'step {step + 1}':>12}" for step in range(steps))
    print(f"\nloss of each step\n{'door':<8}{'backend':<8}{head}")
    for told in runs:
        print(f"{told.door:<8}{told.backend:<8}{''.join(f'{x:12.6f}' for x in told.losses)}")
    apart = [spread([told.losses[step] for told in runs]) for step in range(steps)]
    print(f"{'apart, relative':<16}{''.join(f'{x:12.1e}' for x in apart)}")
    same_tokens = all(told.tokens == runs[0].tokens for told in runs)
    logprobs_apart = max(
        (spread(column) for column in zip(*(told.logprobs for told in runs), strict=True)),
        default=0.0,
    )
    agree = max(apart) <= TOLERANCE and same_tokens and logprobs_apart <= TOLERANCE
    print(
        f"\n{len(runs)} runs: losses within {max(apart):.1e} relative (at most {TOLERANCE:.0e}); "
        f"greedy samples of {len(runs[0].tokens)} tokens "
        f"{'the same' if same_tokens else 'DIFFER'}, their logprobs within {logprobs_apart:.1e}"
    )
    print("parity: all equal" if agree else "parity: FAILED")
    return agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument(
        "--model", default="", help="a base model of the engine; a tiny random one unless given"
    )
    parser.add_argument(
        "--loops-capacity", choices=("serverless", "dedicated"), default="serverless"
    )
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        folder = Path(scratch)
        model = arguments.model or str(write_micro_model(folder / "model"))
        home = folder / "home"
        home.mkdir()
        with gateways(model, folder, arguments.backends, arguments.loops_capacity) as front:
            for door in arguments.doors:
                for backend in arguments.backends:
                    runs.append(run(front, door, backend, home))
                    seconds = runs[-1].seconds
                    print(f"parity: {door} over {backend}: done in {seconds:.1f} s", flush=True)
    return 0 if report(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
