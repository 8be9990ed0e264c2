"""The table of what was read off the machine code."""

from __future__ import annotations

from collections.abc import Sequence

from tinkergate_kernels.aot import cost_model
from tinkergate_kernels.aot.gates import Reading
from tinkergate_kernels.gpu.shipped import Shipped

_HEAD = (
    "Kernel",
    "Target",
    "Registers",
    "Spills, stack",
    "Shared KiB",
    "Wide accesses",
    "Tensor-core instructions",
    "Instructions per element",
    "Special functions per element",
    "Share of the limit, at best",
)

_PREFACE = """# What the kernels compile to

**No GPU ran any of this.** Every shipped configuration was compiled ahead of time, its machine
code was disassembled, and the figures below were read off it. `make kernels-aot` makes this page
anew, and fails if a configuration breaks a rule of `tinkergate_kernels/aot/gates.py`. Compiled with
{versions}.

- **Spills, stack**: instructions that spill, and bytes of stack, per thread. AMD: spilled vector
  registers and bytes of scratch. Must be 0.
- **Wide accesses**: loads and stores of full tiles that have 128 bits, of all that stand in the
  source. What is a full tile, and what a tail, is told in `aot/tile_code.py`. `+ n` are
  instructions of the copy engine, which tensor descriptors become.
- **Tensor-core instructions**: HMMA, HGMMA, UTC*MMA or v_mfma in the whole program.
- **Per element**: in the main loop, for an element of the largest input. On AMD only instructions
  of the vector unit count, and no bounds are set.
- **Share of the limit, at best**: the cost model of `aot/cost_model.py` for {cards}. 100 % says
  that neither issuing instructions nor special functions take longer than the limit; in brackets,
  how much of the limit's time each takes. The model knows no caches, shared memory or latency: it
  is a bound, not a forecast. Products of matrices are told for sums of {contractions} terms. Of a
  kernel without a main loop the whole program counts, the code for tails and for ignored rows too,
  which no one tile runs through: there the model says too little.
"""


def table(readings: Sequence[Reading], versions: str) -> str:
    """The whole page, for readings in the order that they are to stand in."""
    cards = ", ".join(f"{card.name} ({target})" for target, card in cost_model.CARDS.items())
    contractions = " and ".join(map(str, cost_model.CONTRACTIONS))
    lines = [_PREFACE.format(versions=versions, cards=cards, contractions=contractions)]
    lines += ["## Figures", "", _row(_HEAD), _row(["---"] * len(_HEAD))]
    lines += [_row(_cells(reading)) for reading in readings]
    lines += [
        "",
        "## Configurations",
        "",
        _row(("Kernel", "Constants", "Types", "Warps", "Stages")),
    ]
    lines += [_row(["---"] * 5)]
    named = {reading.configuration.name: reading.configuration for reading in readings}
    lines += [_row(_configuration(each)) for each in named.values()]
    return "\n".join(lines) + "\n"


def _cells(reading: Reading) -> list[str]:
    code, each = reading.code, reading.per_element()
    wide = f"{reading.full - len(reading.narrow)} of {reading.full}"
    if not reading.configuration.bounds.wide_loads:
        wide += ", not asked"
    return [
        reading.configuration.name,
        reading.target,
        str(code.registers),
        f"{code.spills}, {code.stack_bytes}",
        f"{code.shared_bytes / 1024:.1f}",
        wide + (f" + {code.copies}" if code.copies else ""),
        str(code.tensor),
        f"{each.instructions:.2f}" if each else "",
        f"{each.special:.2f}" if each else "",
        _share(reading),
    ]


def _share(reading: Reading) -> str:
    predicted = [
        (contraction, share)
        for contraction in cost_model.CONTRACTIONS
        if (
            share := cost_model.predict(
                reading.target, reading.code, reading.tiles, reading.threads, contraction
            )
        )
        is not None
    ]
    if not predicted:
        return ""
    told = [
        f"{share.share:.0%} (issue {share.issue:.2f}, special {share.special:.2f})"
        for _, share in predicted
    ]
    limit = predicted[0][1].limit
    if limit == "memory":
        return f"memory {told[0]}"
    return f"{limit} " + "; ".join(
        f"{text} at {n}" for (n, _), text in zip(predicted, told, strict=True)
    )


def _configuration(each: Shipped) -> list[str]:
    constants = ", ".join(f"{name}={value}" for name, value in each.constants.items())
    types = ", ".join(dict.fromkeys(each.signature.values()))
    return [each.name, constants, f"`{types}`", str(each.num_warps), str(each.num_stages)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
