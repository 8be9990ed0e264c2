"""The services that backends speak to: what the environment says of them, and their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from pydantic import TypeAdapter

from tinkergate.config.settings import Config
from tinkergate.config.tables import BackendTable, ServiceTable

FROM_ENVIRONMENT = {
    "mint": "MINT_API_KEY",
    "tinker": "TINKER_API_KEY",
    "loops": "BASETEN_API_KEY",
}
"""The kinds of backends that a key in the environment alone makes, each under its kind's name."""

_TABLE: TypeAdapter[BackendTable] = TypeAdapter(BackendTable)
_S = TypeVar("_S", bound=ServiceTable)


def completed(
    config: Config, environment: Mapping[str, str], source: str, problems: list[str]
) -> Config:
    """The configuration with the backends that the environment alone makes, and with every
    backend's address and key. What is wrong is added to `problems`; `source` is where the tables
    come from."""
    tables = dict(config.backends)
    if config.backends_from_environment:
        kinds = {table.kind for table in tables.values()}
        for kind, variable in FROM_ENVIRONMENT.items():
            if environment.get(variable) and kind not in kinds:
                if kind in tables:
                    problems.append(
                        f"{source}: backends.{kind}: is of kind {tables[kind].kind!r}, and "
                        f"{variable} makes another of that name; rename it, or set "
                        "backends_from_environment = false"
                    )
                else:
                    tables[kind] = _TABLE.validate_python({"kind": kind})
    complete: dict[str, BackendTable] = {}
    for name, table in tables.items():
        if isinstance(table, ServiceTable):
            complete[name] = _complete(name, table, environment, source, problems)
        else:
            complete[name] = table
    return replace(config, backends=complete)


def _complete(
    name: str,
    table: _S,
    environment: Mapping[str, str],
    source: str,
    problems: list[str],
) -> _S:
    where = f"{source}: backends.{name}"
    if table.api_key_env and table.api_key_file is not None:
        problems.append(f"{where}: api_key_env and api_key_file are both given; give one")
    key_variable = table.api_key_env or table.key_variable
    sources = {"api_key": key_variable}
    key = environment.get(key_variable, "")
    if table.api_key_file is not None:
        sources["api_key"] = str(table.api_key_file)
        try:
            key = table.api_key_file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8 text"
            problems.append(f"{where}.api_key_file: {str(table.api_key_file)!r}: {reason}")
            return table
        if not key:
            problems.append(f"{where}.api_key_file: {str(table.api_key_file)!r} is empty")
    elif not key:
        problems.append(
            f"{where}: has no API key: set {key_variable}, or name another variable by "
            "api_key_env, or a file by api_key_file"
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        problems.append(f"{where}: its API key is no printable ASCII without spaces")
    given = {}
    for setting, variable in table.variables.items():
        if not getattr(table, setting, "") and (value := environment.get(variable, "")):
            given[setting], sources[setting] = value, variable
    try:
        return table.completed(name, key, given, sources)
    except ValueError as error:
        of_url = str(error).startswith("base_url")
        problems.append(f"{sources.get('base_url', where) if of_url else where}: {error}")
        return table
