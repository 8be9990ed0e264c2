"""What `make run` shows: a gateway starts, a language model is fine-tuned through it over gRPC on
`data/pig_latin.jsonl`, and answers before and after.

Everything here is a command that you can type yourself; each is printed before it runs.
"""

from __future__ import annotations

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
DATA_DIR = ROOT / ".cache" / "demo"
TINKERGATE = str(Path(sys.executable).parent / "tinkergate")

# 40 steps of 8 examples go through the data seven times: enough to learn it, and to show the rule.
TRAINING = ["--steps", "40", "--batch-size", "8", "--learning-rate", "2e-3", "--rank", "16"]
# The first is in the data; the others are not.
PROMPTS = ["What is ice?", "What is the sun?", "What do cats eat?"]


def main() -> int:
    """Run the demonstration; the exit code is that of the first command that failed."""
    began = time.monotonic()
    print("Tinkergate: fine-tune a language model over gRPC.\n")
    with gateway() as address:
        prompts = [part for prompt in PROMPTS for part in ("--sample", prompt)]
        data = "data/pig_latin.jsonl"
        run("train", data, *TRAINING, "--save", "pig-latin", *prompts, address=address)
        listed = run("checkpoints", "list", "--json", address=address, quiet=True)
        checkpoint = json.loads(listed.splitlines()[0])["path"]
        print("\nThe checkpoint answers, now that the training is over:")
        question = ["Where do birds sleep?", "--temperature", "0", "--max-tokens", "40"]
        run("sample", *question, "--model-path", checkpoint, address=address)
    print(f"\nDone in {time.monotonic() - began:.0f} s. Three things to try next:\n")
    print(next_steps(checkpoint))
    return 0


@contextlib.contextmanager
def gateway() -> Iterator[str]:
    """A gateway on a free port, as long as the block runs; its address."""
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    log_path = DATA_DIR / "gateway.log"
    command = [TINKERGATE, "serve", "--grpc", "127.0.0.1:0", "--data-dir", str(DATA_DIR)]
    show(command)
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
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


def next_steps(checkpoint: str) -> str:
    """The three things that a newcomer can try next."""
    tinkergate = str(Path(TINKERGATE).relative_to(ROOT)) if is_inside(TINKERGATE) else TINKERGATE
    data_dir = DATA_DIR.relative_to(ROOT)
    return f"""\
  0. Start a gateway that stays up, with what was trained just now:
       {tinkergate} serve --data-dir {data_dir}

  1. Train on your own conversations, one JSON object a line:
       {{"messages": [{{"role": "user", "content": "Q"}}, {{"role": "assistant", "content": "A"}}]}}
       {tinkergate} train yours.jsonl --epochs 3 --sample "A question"

  2. Ask the model, or score texts with it:
       {tinkergate} sample "Why is the sky blue?" --model-path {checkpoint}
       echo '{{"text": "Ethay yskay"}}' | {tinkergate} score - --model-path {checkpoint}

  3. Write a program: README.md has one in Python. Any other language can generate a client from
     proto/tinkergate/v1; the gateway tells its contract by reflection:
       grpcurl -plaintext 127.0.0.1:7700 list
"""


def is_inside(path: str) -> bool:
    """Whether a path is inside this project."""
    return Path(path).is_relative_to(ROOT)


if __name__ == "__main__":
    # The gateway gets the keyboard's interrupt too, and ends by itself.
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
