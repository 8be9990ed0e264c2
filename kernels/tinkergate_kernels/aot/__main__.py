"""`python -m tinkergate_kernels.aot`: compile what is shipped, and hold it to the rules."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from tinkergate_kernels.gpu.shipped import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 1 if a rule is broken, the report is not what `--check` expects, or
    Triton is missing."""
    parser = argparse.ArgumentParser(prog="python -m tinkergate_kernels.aot", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument(
        "--only", metavar="NAME", help="only configurations with this in their name"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table here")
    parser.add_argument(
        "--check", action="store_true", help="compare with the report, and do not write"
    )
    options = parser.parse_args(arguments)
    if options.check and options.report is None:
        parser.error("--check compares with a report: name it with --report")
    if options.report is not None and (options.target or options.only):
        parser.error("a report is of everything: leave out --target and --only")
    if importlib.util.find_spec("triton") is None:
        print(
            "Triton is not installed; it brings the compiler and the disassembler", file=sys.stderr
        )
        return 1
    return _run(options.target, options.only, options.report, options.check)


def _run(target: str | None, only: str | None, report: Path | None, check: bool) -> int:
    from tinkergate_kernels.aot import compiling, gates
    from tinkergate_kernels.aot.report import table

    chosen = [each for each in compiling.shipped() if only is None or only in each.name]
    if not chosen:
        print(f"no shipped configuration has {only!r} in its name", file=sys.stderr)
        return 1
    readings, broken = [], []
    for configuration in chosen:
        for each in configuration.targets:
            if target is not None and each != target:
                continue
            reading = gates.read(configuration, each)
            failures = gates.failures(reading)
            readings.append(reading)
            broken += failures
            print(f"{'FAIL' if failures else 'ok  '} {configuration.name} {each}", flush=True)
    for failure in broken:
        print(failure, file=sys.stderr)
    print(f"{len(readings)} compiled, {len(broken)} rules broken; no GPU ran any of it")
    different = False
    if report is not None:
        page = table(readings, compiling.versions())
        if check:
            different = not report.exists() or report.read_text() != page
            if different:
                print(f"{report} is not what is compiled; make kernels-aot", file=sys.stderr)
        else:
            report.write_text(page)
    return int(bool(broken) or different)


if __name__ == "__main__":
    sys.exit(main())
