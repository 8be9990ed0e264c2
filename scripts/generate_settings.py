"""Write the tables of settings into docs/configuration.md, from the code that defines them.

With --check it fails if the page differs. A setting's default and its meaning are those of its
dataclass field and of the docstring below it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from tinkergate.config import Config, environment_name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
MARKERS = re.compile(r"(<!-- settings -->\n).*(<!-- /settings -->)", re.DOTALL)


def meanings(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for entry, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(entry.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            found[entry.target.id] = " ".join(str(below.value.value).split())
    return found


def shown_default(entry: Field[Any]) -> str:
    """A default as it would be written in the file."""
    if entry.default is MISSING:
        return "by the XDG rules"
    match entry.default:
        case None:
            return "absent"
        case bool(value):
            return f"`{str(value).lower()}`"
        case ():
            return "`[]`"
        case str(value):
            return f'`"{value}"`'
        case value:
            return f"`{value}`"


def rows(kind: type, prefix: str = "") -> Iterator[str]:
    """The table's rows of one dataclass, without those that are tables of their own."""
    hints, texts = get_type_hints(kind), meanings(kind)
    for entry in fields(kind):
        if not is_dataclass(hints[entry.name]):
            name = prefix + entry.name
            yield (
                f"| `{entry.name}` | {shown_default(entry)} | `{environment_name(name)}` "
                f"| {texts[entry.name]} |\n"
            )


def tables() -> str:
    """All settings."""
    head = "| setting | default | environment | meaning |\n|---|---|---|---|\n"
    parts = ["\n## Top level\n\n", head, *rows(Config)]
    texts = meanings(Config)
    for name, hint in get_type_hints(Config).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            parts += [f"\n## [{name}]\n\n", texts[name], "\n\n", head, *rows(hint, f"{name}.")]
    return "".join(parts) + "\n"


def main() -> None:
    text = PAGE.read_text()
    wanted = MARKERS.sub(lambda found: found[1] + tables() + found[2], text)
    if "--check" not in sys.argv:
        PAGE.write_text(wanted)
    elif wanted != text:
        raise SystemExit(f"{PAGE.name} is not up to date: run scripts/generate_settings.py")


if __name__ == "__main__":
    main()
