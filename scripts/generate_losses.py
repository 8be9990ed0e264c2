"""Write the losses into docs/losses.md, from the registry that defines them.

With --check it fails if the page differs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tinkergate_kernels.losses import LOSSES, LossSpec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "losses.md"
MARKERS = re.compile(r"(<!-- losses -->\n).*(<!-- /losses -->)", re.DOTALL)


def section(spec: LossSpec) -> str:
    """One loss."""
    targets = "(N,) or (N, K)" if spec.many_targets else "(N,)"
    optional = [
        f"`{name}` (absent: {'the setting of that name' if default is None else f'{default:g}'})"
        for name, default in spec.optional.items()
    ]
    settings = [
        f"`{name}` = {setting.default:g} ({setting.rule.removeprefix('must be ')})"
        for name, setting in spec.settings.items()
    ]
    rows = [
        ("formula", f"`{spec.formula}`"),
        ("inputs", ", ".join(f"`{name}`" for name in ("target_tokens", *spec.required))),
        ("optional inputs", ", ".join(optional)),
        ("settings", ", ".join(settings)),
        ("targets", targets),
        ("datums", "in pairs: even = chosen, odd = rejected" if spec.paired else ""),
        ("metrics", ", ".join(f"`{name}`" for name in ("loss:sum", *spec.metrics))),
        ("source", spec.source),
    ]
    table = "".join(f"| {name} | {told} |\n" for name, told in rows if told)
    return f"\n### {spec.name}\n\n| | |\n|---|---|\n{table}"


def main() -> None:
    text = PAGE.read_text()
    sections = "".join(map(section, LOSSES.values())) + "\n"
    wanted = MARKERS.sub(lambda found: found[1] + sections + found[2], text)
    if "--check" not in sys.argv:
        PAGE.write_text(wanted)
    elif wanted != text:
        raise SystemExit(f"{PAGE.name} is not up to date: run scripts/generate_losses.py")


if __name__ == "__main__":
    main()
