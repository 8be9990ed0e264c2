"""A configuration as text, with where each setting comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.config.loading import Loaded
from tinkergate.config.places import TABLES, all_settings, quoted
from tinkergate.config.tables import RemoteBackendTable

MASK = "***"
"""What stands for a secret."""


def shown(loaded: Loaded) -> Iterator[str]:
    """Every setting as `name = value  # where it comes from`, in the file's own notation."""
    for name, _ in all_settings():
        if name not in TABLES:
            value: Any = loaded.config
            for part in name.split("."):
                value = getattr(value, part)
            source = loaded.found[name].source if name in loaded.found else "default"
            yield f"{name} = {_text(_masked(name, value))}  # {source}"
    for name, table in loaded.config.backends.items():
        given = table.model_dump(exclude_unset=True)
        source = loaded.found["backends"].source if "backends" in loaded.found else ""
        if name not in (loaded.found["backends"].value if source else {}):
            assert isinstance(table, RemoteBackendTable)
            source = f"{table.kind.upper()}_API_KEY"
        where = f"backends.{quoted(name)}"
        if isinstance(table, RemoteBackendTable):
            service = table.service(name)
            yield f"{where}.kind = {_text(table.kind)}  # {source}"
            yield f"{where}.base_url = {_text(_without_password(service.url))}  # {source}"
            yield f"{where}.api_key = {_text(MASK)}  # {_key_source(table)}"
            for entry in fields(TinkerSettings):
                if entry.name not in ("name", "dialect", "base_url", "api_key"):
                    value = _without_password(getattr(service, entry.name))
                    origin = source if entry.name in given else "default"
                    yield f"{where}.{entry.name} = {_text(value)}  # {origin}"
        else:
            for key, value in table.model_dump().items():
                origin = source if key in given else "default"
                yield f"{where}.{key} = {_text(value)}  # {origin}"
    for name, model in loaded.config.models.items():
        source = loaded.found["models"].source
        for key, value in model.model_dump().items():
            origin = source if key in model.model_fields_set else "default"
            yield f"models.{quoted(name)}.{key} = {_text(value)}  # {origin}"


def _key_source(table: RemoteBackendTable) -> str:
    if table.api_key_file is not None:
        return str(table.api_key_file)
    return table.api_key_env or f"{table.kind.upper()}_API_KEY"


def _masked(name: str, value: Any) -> Any:
    if name == "api_keys":
        return tuple(MASK for _ in value)
    return _without_password(value)


def _without_password(value: Any) -> Any:
    """A URL may carry the password of a database or a proxy."""
    return re.sub(r"(://[^/@:]*:)[^/]*@", rf"\1{MASK}@", value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    if value is None:
        return "(absent)"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)
