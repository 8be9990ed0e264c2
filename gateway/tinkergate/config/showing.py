"""A configuration as text, with where each setting comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinkergate.config.loading import Loaded
from tinkergate.config.places import TABLES, all_settings, quoted
from tinkergate.config.tables import BackendTable, LocalBackendTable
from tinkergate.config.upstreams import FROM_ENVIRONMENT

DEFAULT = "default"
MASK = "***"
"""What stands for a secret."""


def shown(loaded: Loaded) -> Iterator[str]:
    """Every setting as `name = value  # where it comes from`, in the file's own notation."""
    for name, _ in all_settings():
        if name not in TABLES:
            value: Any = loaded.config
            for part in name.split("."):
                value = getattr(value, part)
            source = loaded.found[name].source if name in loaded.found else DEFAULT
            yield f"{name} = {_text(_masked(name, value))}  # {source}"
    for name, table in loaded.config.backends.items():
        tables = loaded.found.get("backends")
        if tables is not None and name in tables.value:
            place = tables.source
        else:
            place = FROM_ENVIRONMENT.get(table.kind, DEFAULT)
        for key, value, source in _backend(table, place):
            yield f"backends.{quoted(name)}.{key} = {_text(value)}  # {source}"
    for name, model in loaded.config.models.items():
        for key, value in model.model_dump().items():
            given = key in model.model_fields_set
            source = loaded.found["models"].source if given else DEFAULT
            yield f"models.{quoted(name)}.{key} = {_text(value)}  # {source}"


def _backend(table: BackendTable, place: str) -> Iterator[tuple[str, Any, str]]:
    """The settings of one backend, each with its value and where that comes from."""
    given = table.model_dump(exclude_unset=True)
    if isinstance(table, LocalBackendTable):
        for key, value in table.model_dump().items():
            yield key, value, place if key in given else DEFAULT
        return
    service = table.service("backend")
    yield "kind", table.kind, place
    in_table = place if table.base_url else DEFAULT
    yield "base_url", _without_password(service.url), table.sources.get("base_url", in_table)
    yield "api_key", MASK, table.sources["api_key"]
    for key in table.options():
        value = _without_password(getattr(service, key))
        yield key, value, table.sources.get(key, place if key in given else DEFAULT)


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
