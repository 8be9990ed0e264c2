"""Configuration: the settings of every room, from four places.

A setting is looked for in this order, and the first place that has it wins:

1. a flag of `tinkergate serve`;
2. an environment variable, `TINKERGATE_` and the setting's name in capitals with `_` for `.`:
   `limits.max_wait` is `TINKERGATE_LIMITS_MAX_WAIT`. Some have shorter names, see `SHORT_NAMES`.
   Lists are separated by commas;
3. the TOML file of `--config` (or `TINKERGATE_CONFIG`), where `limits.max_wait` is `max_wait` in
   the table `[limits]`;
4. the default.

The tables of `[backends]` and `[models]` are in the file alone; flags and the environment can add
to them. What is not known is refused by name, so a typo never passes for the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tinkergate.config.places import (
    PREFIX,
    TABLES,
    ConfigError,
    Found,
    flag_name,
    from_environment,
    from_file,
    quoted,
    unknown,
)
from tinkergate.config.rules import broken_between, broken_values
from tinkergate.config.settings import Config
from tinkergate.config.tables import LocalBackendTable, ModelTable
from tinkergate.config.upstreams import completed

_SECRET = ("api_keys", "store_url")
"""Settings whose values are not told."""


@dataclass(frozen=True)
class Loaded:
    """A configuration, and where it comes from."""

    config: Config
    found: Mapping[str, Found]
    """The settings that are no defaults."""

    def source(self, setting: str) -> str:
        """Where a setting comes from, in words that lead there."""
        return _source(setting, self.found)


def load_config(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The configuration from all four places. `flags` has settings by their dotted names; None
    means that the flag was not given. Raises ConfigError."""
    return read_config(flags, file=file, environment=environment).config


def read_config(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """As `load_config`, with where each setting comes from. Raises ConfigError, which tells all
    that is wrong."""
    environment = os.environ if environment is None else environment
    if file is None and (named := environment.get(f"{PREFIX}CONFIG")):
        file = Path(named)
    problems: list[str] = []
    found: dict[str, Found] = {}
    if file is not None:
        found |= from_file(file, problems)
    found |= from_environment(environment, problems)
    for name, value in flags.items():
        if value is not None:
            if name in TABLES and name in found:
                value = {**found[name].value, **value}
            found[name] = Found(value, flag_name(name))

    config = _built(found, problems)
    if config is not None:
        problems += broken_values(found, config)
        config = completed(config, environment, str(file or "environment"), problems)
        problems += broken_between(config, lambda setting: _source(setting, found))
    if problems or config is None:
        raise ConfigError(*problems)
    return Loaded(config, found)


def _source(setting: str, found: Mapping[str, Found]) -> str:
    while setting and setting not in found:
        setting = setting.rpartition(".")[0]
    return found[setting].source if setting else "configuration"


def _built(found: Mapping[str, Found], problems: list[str]) -> Config | None:
    """The settings in their types, or None where one is not of its type."""
    tree: dict[str, Any] = {}
    for setting, each in found.items():
        *sections, last = setting.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[last] = each.value
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        told: set[str] = set()
        for details in error.errors(include_url=False):
            problem = _problem(details, found)
            if problem not in told:
                told.add(problem)
                problems.append(problem)
        return None


def _problem(error: Any, found: Mapping[str, Found]) -> str:
    """A line about one setting: where it is, its value, and the rule."""
    location = [str(part) for part in error["loc"]]
    setting = next(
        name for end in range(len(location), 0, -1) if (name := ".".join(location[:end])) in found
    )
    where = found[setting].source
    rule = str(error["msg"]).removeprefix("Value error, ")
    if setting in TABLES:
        return f"{where}{_inside(location[1:])}: {_table_rule(error, setting, rule)}"
    if setting in _SECRET or isinstance(error["input"], dict | list | tuple):
        return f"{where}: {rule}"
    return f"{where}: {rule}, not {error['input']!r}"


def _inside(location: list[str]) -> str:
    """The place in a table of tables: `.mint.base_url`. The kind that pydantic chose by is left
    out."""
    name, *rest = location or [""]
    if rest and rest[0] in ("local", "tinker", "mint", "loops"):
        rest = rest[1:]
    return "".join(f".{part}" for part in (quoted(name) if name else "", *rest) if part)


def _table_rule(error: Any, setting: str, rule: str) -> str:
    match error["type"]:
        case "union_tag_invalid":
            kind = error["input"].get("kind") if isinstance(error["input"], dict) else None
            return f"kind must be 'local', 'tinker', 'mint' or 'loops', not {kind!r}"
        case "union_tag_not_found":
            return "has no kind; must be 'local', 'tinker', 'mint' or 'loops'"
        case "extra_forbidden":
            fields = (ModelTable if setting == "models" else LocalBackendTable).model_fields
            return unknown(str(error["loc"][-1]), fields)
        case _ if isinstance(error["input"], dict | list | tuple):
            return rule
        case _:
            return f"{rule}, not {error['input']!r}"
