"""The services that backends speak to: what the environment says of them, and their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tinkergate.config.settings import Config
from tinkergate.config.tables import BackendTable, RemoteBackendTable


def ignored(config: Config, environment: Mapping[str, str]) -> list[str]:
    """What the environment asks for in vain, in words for people."""
    if config.backends_from_environment and environment.get("BASETEN_API_KEY"):
        return ["BASETEN_API_KEY is set, but this build does not speak Loops yet: it is ignored"]
    return []


def completed(
    config: Config, environment: Mapping[str, str], source: str, problems: list[str]
) -> Config:
    """The configuration with the backends that the environment alone makes, and with every
    backend's address and key. What is wrong is added to `problems`; `source` is where the tables
    come from."""
    tables = dict(config.backends)
    if config.backends_from_environment:
        kinds = {table.kind for table in tables.values()}
        for kind in ("mint", "tinker"):
            if environment.get(f"{kind.upper()}_API_KEY") and kind not in kinds:
                if kind in tables:
                    problems.append(
                        f"{source}: backends.{kind}: is of kind {tables[kind].kind!r}, and "
                        f"{kind.upper()}_API_KEY makes another of that name; rename it, or set "
                        "backends_from_environment = false"
                    )
                else:
                    tables[kind] = RemoteBackendTable.model_validate({"kind": kind})
    complete: dict[str, BackendTable] = {}
    for name, table in tables.items():
        if isinstance(table, RemoteBackendTable):
            complete[name] = _complete(name, table, environment, source, problems)
        else:
            complete[name] = table
    return replace(config, backends=complete)


def _complete(
    name: str,
    table: RemoteBackendTable,
    environment: Mapping[str, str],
    source: str,
    problems: list[str],
) -> RemoteBackendTable:
    where = f"{source}: backends.{name}"
    if table.api_key_env and table.api_key_file is not None:
        problems.append(f"{where}: api_key_env and api_key_file are both given; give one")
    key_variable = table.api_key_env or f"{table.kind.upper()}_API_KEY"
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
    url, url_variable = table.base_url, f"{table.kind.upper()}_BASE_URL"
    if not url and (url := environment.get(url_variable, "")):
        sources["base_url"] = url_variable
    try:
        return table.completed(name, url, key, sources)
    except ValueError as error:
        problems.append(f"{sources.get('base_url', where)}: {error}")
        return table
