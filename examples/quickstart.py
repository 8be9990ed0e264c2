"""What `make run` shows: a gateway starts, a language model is fine-tuned through it over gRPC on
`data/pig_latin.jsonl`, and answers before and after.

Everything here is a command that you can type yourself; each is printed before it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINKERGATE = str(Path(sys.executable).parent / "tinkergate")

# The first is in the data; the others are not.
PROMPTS = ["What is ice?", "What is the sun?", "What do cats eat?"]


def main() -> int:
    """Run the demonstration; the exit code is that of the first command that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data-dir", type=Path, default=ROOT / ".cache" / "demo", help="where the gateway keeps"
    )
    # 4 examples a step: 60 steps go through the data almost six times.
    parser.add_argument("--steps", default="60", help="optimizer steps")
    options = parser.parse_args()
    began = time.monotonic()
    print("Tinkergate: fine-tune a language model over gRPC.")
    with gateway(options.data_dir) as address:
        settings = ["--batch-size", "4", "--learning-rate", "4e-3", "--rank", "16"]
        prompts = [part for prompt in PROMPTS for part in ("--sample", prompt)]
        run(
            *("train", "data/pig_latin.jsonl", "--steps", options.steps, *settings),
            *("--save", "pig-latin", *prompts),
            address=address,
        )
        listed = run("checkpoints", "list", "--json", address=address, quiet=True)
        checkpoint = json.loads(listed.splitlines()[0])["path"]
        print("\nThe checkpoint answers, now that the training is over:")
        question = ["Where do birds sleep?", "--temperature", "0", "--max-tokens", "40"]
        run("sample", *question, "--model-path", checkpoint, address=address)
    print(f"\nDone in {time.monotonic() - began:.0f} s. Three things to try next:\n")
    print(next_steps(options.data_dir, checkpoint))
    return 0


@contextlib.contextmanager
def gateway(data_dir: Path) -> Iterator[str]:
    """A gateway on a free port, as long as the block runs; its address."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / "gateway.log"
    command = [TINKERGATE, "serve", "--grpc", "127.0.0.1:0", "--data-dir", shown(data_dir)]
    show(command)
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
    assert process.stdout is not None
    with process.stdout:
        try:
            line = process.stdout.readline().strip()
            if not line.startswith("listening grpc="):
                raise SystemExit(f"the gateway did not start:\n{log_path.read_text()}")
            print(line)
            yield line.removeprefix("listening grpc=")
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run(*arguments: str, address: str, quiet: bool = False) -> str:
    """Run a command against the gateway. What it prints is shown, or answered if `quiet`. Ends the
    program if the command fails."""
    command = [TINKERGATE, *arguments, "--address", address]
    if not quiet:
        show(command)
    done = subprocess.run(
        command, stdout=subprocess.PIPE if quiet else None, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def show(command: list[str]) -> None:
    """Print a command as it would be typed."""
    words = [Path(command[0]).name, *command[1:]]
    print(f"\n$ {shlex.join(words)}", flush=True)


def next_steps(data_dir: Path, checkpoint: str) -> str:
    """The three things that a newcomer can try next."""
    tinkergate = shown(Path(TINKERGATE))
    return f"""\
  Start a gateway that stays up, with what was trained just now, and go on in another terminal:
    {tinkergate} serve --data-dir {shown(data_dir)}

  1. Train on your own conversations, one JSON object a line:
    {{"messages": [{{"role": "user", "content": "Q"}}, {{"role": "assistant", "content": "A"}}]}}
    {tinkergate} train yours.jsonl --epochs 3 --sample "A question"

  2. Ask the model, or score texts with it:
    {tinkergate} sample "Why do birds fly?" --model-path {checkpoint}
    echo '{{"text": "Ethay yskay"}}' | {tinkergate} score - --model-path {checkpoint}

  3. Write a program: README.md has one in Python. Any other language can generate a client from
     proto/tinkergate/v1; the gateway tells its contract by reflection, too:
    grpcurl -plaintext 127.0.0.1:7700 list"""


def shown(path: Path) -> str:
    """A path as one would type it in the project's folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    # The gateway gets the keyboard's interrupt too, and ends by itself.
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
