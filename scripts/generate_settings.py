"""Write the tables of settings into docs/configuration.md, from the code that defines them.

With --check it fails if the page differs. A setting's default and its meaning are those of its
field and of the docstring below it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tinkergate.config import (
    Config,
    LocalBackendTable,
    LoopsBackendTable,
    ModelTable,
    RemoteBackendTable,
    ServiceTable,
    environment_name,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
MARKERS = re.compile(r"(<!-- settings -->\n).*(<!-- /settings -->)", re.DOTALL)


def meanings(kind: type) -> dict[str, str]:
    """The docstring below each field of a class."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for entry, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(entry.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            found[entry.target.id] = " ".join(str(below.value.value).split())
    return found


def shown_default(default: object) -> str:
    """A default as it would be written in the file."""
    match default:
        case _ if default is MISSING:
            return "by the XDG rules"
        case _ if default is PydanticUndefined:
            return "none: must be given"
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
        variable = environment_name(prefix + entry.name)
        if not is_dataclass(hints[entry.name]) and variable:
            yield (
                f"| `{entry.name}` | {shown_default(entry.default)} | `{variable}` "
                f"| {texts[entry.name]} |\n"
            )


def table_rows(kind: type[BaseModel]) -> Iterator[str]:
    """The rows of a table that only the file has, its kind first."""
    texts = meanings(kind)
    entries = kind.model_fields
    for name, entry in sorted(entries.items(), key=lambda each: each[0] != "kind"):
        yield f"| `{name}` | {shown_default(entry.default)} | {texts[name]} |\n"


def service_rows(kind: type[ServiceTable]) -> Iterator[str]:
    """The rows of what a service's backend takes beside its table's own settings."""
    texts, options = meanings(kind.settings_type), kind.options()
    for entry in fields(kind.settings_type):
        if entry.name in options:
            yield f"| `{entry.name}` | {shown_default(entry.default)} | {texts[entry.name]} |\n"


def tables() -> str:
    """All settings."""
    head = "| setting | default | environment | meaning |\n|---|---|---|---|\n"
    parts = ["\n## Top level\n\n", head, *rows(Config)]
    texts = meanings(Config)
    for name, hint in get_type_hints(Config).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            parts += [f"\n## [{name}]\n\n", texts[name], "\n\n", head, *rows(hint, f"{name}.")]
    head = "| setting | default | meaning |\n|---|---|---|\n"
    parts += ["\n## [backends.NAME] of kind `local`\n\n", f"{LocalBackendTable.__doc__}\n\n"]
    parts += [head, *table_rows(LocalBackendTable)]
    for title, kind in (("`tinker` or `mint`", RemoteBackendTable), ("`loops`", LoopsBackendTable)):
        parts += [f"\n## [backends.NAME] of kind {title}\n\n", f"{kind.__doc__}\n\n", head]
        parts += [*table_rows(kind), *service_rows(kind)]
    parts += ['\n## [models."NAME"]\n\n', f"{ModelTable.__doc__}\n\n", head]
    parts += table_rows(ModelTable)
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
