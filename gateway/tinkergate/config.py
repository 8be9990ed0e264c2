"""Configuration: the settings of every room, from four places.

A setting is looked for in this order, and the first place that has it wins:

1. a flag of `tinkergate serve`;
2. an environment variable, `TINKERGATE_` and the setting's name in capitals with `_` for `.`:
   `limits.max_wait` is `TINKERGATE_LIMITS_MAX_WAIT`. Some have shorter names, see `SHORT_NAMES`.
   Lists are separated by commas;
3. the TOML file of `--config` (or `TINKERGATE_CONFIG`), where `limits.max_wait` is `max_wait` in
   the table `[limits]`;
4. the default.

What is not known is refused by name, so a typo never passes for the default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from tinkergate.core.settings import CoreSettings
from tinkergate.ingress.grpc.settings import GrpcSettings
from tinkergate.ingress.tls import TlsFiles
from tinkergate.telemetry import LogFormat, LogLevel

PREFIX = "TINKERGATE_"
SHORT_NAMES: Mapping[str, str] = {
    "grpc.listen": "TINKERGATE_GRPC",
    "api_keys": "TINKERGATE_API_KEY",
    "engine.models": "TINKERGATE_MODELS",
}
"""Settings whose environment variable is not built from their name."""


class ConfigError(Exception):
    """The configuration cannot be used. The text is written for people, one line."""


@dataclass(frozen=True)
class EngineSettings:
    """The embedded engine."""

    enabled: bool = True
    """Whether there is one. Without it, PyTorch is never loaded."""
    models: tuple[str, ...] = ()
    """The base models to serve: names, hub ids that were downloaded, or folders. The first is the
    default model. Empty means SmolLM2-135M-Instruct and all that `tinkergate models add` named."""
    device: str | None = None
    """Where to compute, such as "cpu" or "cuda:0"; absent means a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The type of the base model's weights, "float32" or "bfloat16"; absent means float32 on CPU
    and bfloat16 on GPU."""
    threads: int | None = None
    """How many threads to compute with on CPU; absent leaves it to PyTorch."""


@dataclass(frozen=True)
class LogSettings:
    """The log, which goes to stderr."""

    level: LogLevel = "info"
    """The least level to log: "debug", "info", "warning" or "error"."""
    format: LogFormat = "auto"
    """"json", "human", or "auto": human on a terminal, else JSON."""


def default_data_dir() -> Path:
    """The folder of the user's own gateway, by the XDG rules."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "tinkergate"


@dataclass(frozen=True)
class Config:
    """All settings of a gateway."""

    data_dir: Path = field(default_factory=default_data_dir)
    """The folder of everything that has to survive a restart: database, checkpoints. One gateway
    at a time."""
    store_url: str = ""
    """The database as an SQLAlchemy URL; empty means SQLite in the data folder."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """The keys of which every call has to bring one; empty lets everybody in."""
    grace: float = 30.0
    """How many seconds running operations get to end when the gateway is told to stop."""
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    """The gRPC door."""
    tls: TlsFiles = field(default_factory=TlsFiles)
    """The doors' TLS."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """The embedded engine."""
    limits: CoreSettings = field(default_factory=CoreSettings)
    """Bounds, retention and times."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log."""


def load_config(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The configuration from all four places. `flags` has settings by their dotted names; None
    means that the flag was not given. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    if file is None and (named := environment.get(f"{PREFIX}CONFIG")):
        file = Path(named)
    settings = dict(_settings(Config))
    found: dict[str, tuple[object, str]] = {}
    """Values by setting, with where each comes from."""
    if file is not None:
        found |= _from_file(file, settings)
    found |= _from_environment(environment, settings)
    found |= {name: (value, _flag(name)) for name, value in flags.items() if value is not None}
    return _build(found)


def environment_name(setting: str) -> str:
    """The environment variable of a setting."""
    return SHORT_NAMES.get(setting, PREFIX + setting.replace(".", "_").upper())


def _settings(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by their dotted names, with their types."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        name, hint = prefix + entry.name, hints[entry.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _settings(hint, f"{name}.")
        else:
            yield name, hint


def _from_file(path: Path, settings: Mapping[str, Any]) -> dict[str, tuple[object, str]]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: no TOML: {error}") from None
    found: dict[str, tuple[object, str]] = {}
    for name, value in _flatten(content, settings):
        if name not in settings:
            raise ConfigError(f"{path}: {_unknown(name, settings)}")
        found[name] = (value, f"{path}: {name}")
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


def _from_environment(
    environment: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, tuple[object, str]]:
    names = {environment_name(setting): setting for setting in settings}
    sections = tuple({f"{PREFIX}{name.split('.')[0].upper()}_" for name in settings if "." in name})
    found: dict[str, tuple[object, str]] = {}
    for variable, text in environment.items():
        if (setting := names.get(variable)) is not None:
            if not text:
                raise ConfigError(f"{variable} is empty; give it a value or unset it")
            is_list = get_origin(settings[setting]) is tuple
            value = tuple(part.strip() for part in text.split(",")) if is_list else text
            found[setting] = (value, variable)
        elif variable.startswith(sections):
            raise ConfigError(_unknown(variable, names))
    return found


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def _flag(setting: str) -> str:
    special = {"grpc.listen": "--grpc", "engine.models": "--model"}
    return special.get(setting, "--" + setting.replace(".", "-").replace("_", "-"))


def _build(found: Mapping[str, tuple[object, str]]) -> Config:
    tree: dict[str, Any] = {}
    for setting, (value, _) in found.items():
        *sections, last = setting.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[last] = value
    try:
        config = TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        setting = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        raise ConfigError(f"{_source(setting, found)}: {first['msg']}") from None
    for setting, (_, source) in found.items():
        _check(source, setting, config)
    return config


def _source(setting: str, found: Mapping[str, tuple[object, str]]) -> str:
    """Where a setting comes from. The names of union members follow the setting's own."""
    while setting and setting not in found:
        setting = setting.rpartition(".")[0]
    return found[setting][1] if setting else "configuration"


def _check(source: str, setting: str, config: Config) -> None:
    value: Any = config
    for part in setting.split("."):
        value = getattr(value, part)
    if isinstance(value, int | float) and not isinstance(value, bool):
        zero_is_fine = setting == "grace"
        if not (value > 0 or (zero_is_fine and value == 0)) or value == float("inf"):
            raise ConfigError(f"{source}: {value} is no positive finite number")
    if setting == "api_keys":
        for key in value:
            # Other characters cannot travel in gRPC metadata as they are.
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(f"{source}: keys are printable ASCII without spaces, not empty")
