"""Where settings are looked for: the file and the environment, read as they are."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from tinkergate.config.settings import Config

PREFIX = "TINKERGATE_"
SHORT_NAMES: Mapping[str, str] = {
    "grpc.listen": "TINKERGATE_GRPC",
    "http.listen": "TINKERGATE_HTTP",
    "http.public_url": "TINKERGATE_PUBLIC_URL",
    "http.loops_capacity": "TINKERGATE_LOOPS_CAPACITY",
    "api_keys": "TINKERGATE_API_KEY",
    "engine.models": "TINKERGATE_MODELS",
}
"""Settings whose environment variable is not built from their name."""
TABLES = ("backends", "models")
"""Settings that are tables of tables, by names that the file chooses. They have no variables."""


class ConfigError(Exception):
    """The configuration cannot be used. The text is written for people, one line."""

    def __init__(self, *problems: str) -> None:
        more = f" (and {len(problems) - 1} more, see `tinkergate config check`)"
        super().__init__(problems[0] + (more if len(problems) > 1 else ""))
        self.problems = problems
        """All that is wrong, a line each."""


@dataclass(frozen=True)
class Found:
    """The value of a setting."""

    value: Any
    source: str
    """Where it comes from, in words that lead there."""


def environment_name(setting: str) -> str:
    """The environment variable of a setting; empty for those that have none."""
    if setting in TABLES:
        return ""
    return SHORT_NAMES.get(setting, PREFIX + setting.replace(".", "_").upper())


def all_settings(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by their dotted names, with their types."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        name, hint = prefix + entry.name, hints[entry.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from all_settings(hint, f"{name}.")
        else:
            yield name, hint


def from_file(path: Path, problems: list[str]) -> dict[str, Found]:
    """What the file sets. Settings that there are not are added to `problems`. Raises ConfigError
    for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: no TOML: {error}") from None
    settings = dict(all_settings())
    found: dict[str, Found] = {}
    for name, value in _flatten(content, settings):
        if name in settings:
            found[name] = Found(value, f"{path}: {name}")
        else:
            problems.append(f"{path}: {unknown(name, settings)}")
    return found


def _flatten(
    table: Mapping[str, Any], settings: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and name not in settings:
            yield from _flatten(value, settings, f"{name}.")
        else:
            yield name, value


def from_environment(environment: Mapping[str, str], problems: list[str]) -> dict[str, Found]:
    """What variables set. Those that begin like ours and are none are added to `problems`."""
    settings = dict(all_settings())
    names = {variable: name for name in settings if (variable := environment_name(name))}
    sections = tuple({f"{PREFIX}{name.split('.')[0].upper()}_" for name in settings if "." in name})
    found: dict[str, Found] = {}
    for variable, text in environment.items():
        if (setting := names.get(variable)) is not None:
            if not text:
                problems.append(f"{variable} is empty; give it a value or unset it")
                continue
            is_list = get_origin(settings[setting]) is tuple
            value = tuple(part.strip() for part in text.split(",")) if is_list else text
            found[setting] = Found(value, variable)
        elif variable.startswith(sections):
            problems.append(unknown(variable, names))
    return found


def unknown(name: str, known: Mapping[str, Any]) -> str:
    """That there is no such setting, with the one that may be meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def quoted(name: str) -> str:
    """A table's name as it stands in the file."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else f'"{name}"'


def flag_name(setting: str) -> str:
    """The flag of a setting, for those that have one."""
    special = {
        "grpc.listen": "--grpc",
        "http.listen": "--http",
        "http.public_url": "--public-url",
        "http.loops_capacity": "--loops-capacity",
        "engine.models": "--model",
        "models": "--alias",
    }
    return special.get(setting, "--" + setting.replace(".", "-").replace("_", "-"))
