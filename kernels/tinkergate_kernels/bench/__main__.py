"""`python -m tinkergate_kernels.bench`: time every public function here, beside its rivals."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tinkergate_kernels.bench.tasks import OURS, Shape, Task, tasks
from tinkergate_kernels.bench.timing import Rates, medians, probed
from tinkergate_kernels.selftest.__main__ import named

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = {"cpu": Shape(512, 576, 49152), "cuda": Shape(8192, 4096, 151936)}
"""Of a model with 135 million parameters on a CPU, and of one with 8 billion on a GPU."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 1 if one of the kernels does not run."""
    parser = argparse.ArgumentParser(prog="python -m tinkergate_kernels.bench", description=__doc__)
    parser.add_argument("--device", help='such as "cuda" or "cpu"; a GPU if there is one')
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many; 5")
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("N", "D", "V"), help="rows, width, tokens"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="only this one")
    parser.add_argument(
        "--without", action="append", default=[], metavar="RIVAL", help="leave it out"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; must be at least 1")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shape = (
        Shape(*options.shape)
        if options.shape
        else SHAPES["cpu" if device.type == "cpu" else "cuda"]
    )
    if min(shape.rows, shape.width, shape.vocab) < 1:
        parser.error(f"--shape is {options.shape}; must be positive numbers")
    try:
        told_device = named(device)
    except ValueError as error:
        parser.error(str(error))
    found: list[dict[str, Any]] = []
    for name in [options.dtype] if options.dtype else list(DTYPES):
        for result in _measured(name, shape, device, options.rounds, set(options.without)):
            found.append(result)
            if not options.json:
                print(_table(result), flush=True)
    told: dict[str, Any] = {
        "device": told_device,
        "torch": torch.__version__,
        "shape": {"rows": shape.rows, "width": shape.width, "vocab": shape.vocab},
        "rounds": options.rounds,
        "results": found,
    }
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"on {told['device']}, PyTorch {told['torch']}; medians of {options.rounds} rounds")
    return int(any(OURS in result["broken"] for result in found))


def _measured(
    dtype: str, shape: Shape, device: torch.device, rounds: int, without: set[str]
) -> Iterator[dict[str, Any]]:
    rates = probed(device, DTYPES[dtype], (shape.rows, shape.width, shape.vocab), rounds)
    for task in tasks(shape, DTYPES[dtype], device):
        calls = {name: call for name, call in task.calls.items() if name not in without}
        times, broken = medians(calls, device, rounds)
        yield {
            "task": task.name,
            "dtype": dtype,
            "product_flops_per_second": rates.flops,
            "copy_bytes_per_second": rates.bytes,
            "ways": {name: _way(task, rates, times, name) for name in times},
            "broken": broken,
        }


def _way(task: Task, rates: Rates, times: dict[str, float], name: str) -> dict[str, float]:
    own = times[name]
    told = {"milliseconds": 1e3 * own}
    if OURS in times:
        told["times_ours"] = own / times[OURS]
    if task.flops:
        told["share_of_product_rate"] = task.flops / own / rates.flops
    if task.bytes:
        told["share_of_copy_rate"] = task.bytes / own / rates.bytes
    return told


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['task']}, {result['dtype']} (bare product "
        f"{result['product_flops_per_second'] / 1e9:.0f} GFLOP/s, bare copy "
        f"{result['copy_bytes_per_second'] / 1e9:.1f} GB/s)"
    ]
    for name, way in result["ways"].items():
        ratio = f"{way['times_ours']:6.2f} x ours" if "times_ours" in way else ""
        shares = [
            f"{way[key]:5.0%} of the {what}"
            for key, what in (
                ("share_of_product_rate", "product's FLOP/s"),
                ("share_of_copy_rate", "copy's bytes/s"),
            )
            if key in way
        ]
        lines.append(f"  {name:22} {way['milliseconds']:9.2f} ms {ratio}  {', '.join(shares)}")
    lines += [f"  {name:22} does not run here: {why}" for name, why in result["broken"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
