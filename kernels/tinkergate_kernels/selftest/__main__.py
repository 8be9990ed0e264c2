"""`python -m tinkergate_kernels.selftest`: compare every public function with float64, here."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterable, Sequence

import torch

from tinkergate_kernels.dispatch import way_on
from tinkergate_kernels.selftest import linear, losses, selective
from tinkergate_kernels.selftest.checks import Case

ROOMS = {"linear": linear, "selective": selective, "losses": losses}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 1 if a check fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tinkergate_kernels.selftest", description=__doc__
    )
    parser.add_argument("--device", help='such as "cuda" or "cpu"; a GPU if there is one')
    parser.add_argument("--only", metavar="NAME", help="only cases with this in their name")
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        told = named(device)
    except ValueError as error:
        parser.error(str(error))
    print(f"on {told}, PyTorch {torch.__version__}")
    chosen = [case for room in ROOMS.values() for case in room.cases()]
    if options.only is not None:
        chosen = [case for case in chosen if options.only in case.name]
    if not chosen:
        print(f"no case has {options.only!r} in its name", file=sys.stderr)
        return 1
    return run(chosen, device)


def run(cases: Iterable[Case], device: torch.device) -> int:
    """Run the cases and print a line for each check. Returns 1 if one fails."""
    passed = failed = 0
    for case in cases:
        try:
            for measure in case.run(device):
                passed += measure.passed
                failed += not measure.passed
                print(
                    f"{'ok  ' if measure.passed else 'FAIL'} {case.name}: {measure.what}: "
                    f"{measure.error:.1e}, at most {measure.bound:.1e}",
                    flush=True,
                )
        # A kernel that does not run at all is a finding like another: the rest is still checked.
        except Exception as error:
            failed += 1
            print(f"FAIL {case.name}: {type(error).__name__}: {error}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


def named(device: torch.device) -> str:
    """The device in words, with the path that it takes."""
    way = way_on(device)
    if way == "plain":
        return f"plain PyTorch, {device}"
    if way == "cpu":
        return f"the CPU path, {platform.machine()}, {torch.get_num_threads()} threads"
    return f"Triton, {torch.cuda.get_device_name(device)}"


if __name__ == "__main__":
    sys.exit(main())
