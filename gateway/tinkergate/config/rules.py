"""Rules between settings, and those on values that their types do not tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tinkergate.config.places import Found, quoted
from tinkergate.config.settings import ENGINE_BACKEND, Config
from tinkergate.config.tables import LocalBackendTable, ServiceTable
from tinkergate.ingress.address import ListenError, check_exposure, parse_address
from tinkergate.ingress.tls import read_tls

Source = Callable[[str], str]
"""Where a setting comes from."""


def broken_values(found: Mapping[str, Found], config: Config) -> Iterator[str]:
    """The rules on single settings that are broken, a line each."""
    for setting, source in ((name, each.source) for name, each in found.items()):
        value: Any = config
        for part in setting.split("."):
            value = getattr(value, part)
        if isinstance(value, int | float) and not isinstance(value, bool):
            zero_is_fine = setting == "grace"
            if not (value > 0 or (zero_is_fine and value == 0)) or value == float("inf"):
                yield f"{source}: {value} is no positive finite number"
        if setting == "api_keys":
            for key in value:
                # Other characters cannot travel in gRPC metadata as they are.
                if not key or not key.isascii() or not key.isprintable() or " " in key:
                    yield f"{source}: keys are printable ASCII without spaces, not empty"
                    break


def broken_between(config: Config, source: Source) -> Iterator[str]:
    """The rules between settings that are broken, a line each."""
    backends = config.all_backends()
    there_are = ", ".join(backends) or "none"
    if config.has_engine and ENGINE_BACKEND in config.backends:
        yield (
            f"{source('backends')}.{ENGINE_BACKEND}: is the name of the embedded engine of "
            "[engine]; choose another, or set engine.enabled = false"
        )
    if config.engine.models and not config.has_engine and config.engine.enabled is None:
        yield (
            f"{source('engine.models')}: there is no embedded engine of [engine] beside the local "
            "ones of [backends]; give them the models, or set engine.enabled = true"
        )
    if config.default_backend and config.default_backend not in backends:
        yield (
            f"{source('default_backend')}: {config.default_backend!r} is no backend; there are: "
            f"{there_are}"
        )
    for name in backends:
        if quoted(name) != name:
            yield (
                f"{source('backends')}: {name!r} is no name for a backend; must be letters, digits "
                "and _-"
            )
    for setting, listen in (
        ("grpc.listen", config.grpc.listen),
        ("http.listen", config.http.listen),
    ):
        if listen or setting == "grpc.listen":
            try:
                parse_address(listen)
            except ListenError as error:
                yield f"{source(setting)}: {error}"
    if config.profile != "full" and not config.http.listen:
        yield (
            f"{source('profile')}: {config.profile!r} restricts the HTTP door, and there is none; "
            "give http.listen"
        )
    yield from _loops_to_itself(config, source)
    owners: dict[str, str] = {}
    for public, table in config.models.items():
        where = f"{source('models')}.{quoted(public)}"
        owner = table.backend or config.first_backend()
        if owner not in backends:
            yield f"{where}.backend: {owner!r} is no backend; there are: {there_are}"
        elif backends[owner].kind != "local" and table.name.startswith(("/", "~", "./", "../")):
            yield f"{where}.name: {table.name!r} is a folder; backend {owner!r} takes names only"
        for text in (public, *table.aliases):
            if not text or text != text.strip():
                yield f"{where}: {text!r} is no name: it is empty or has spaces around it"
            elif owners.setdefault(text, public) != public:
                yield f"{where}: {text!r} is a name of {owners[text]!r} already"


def broken_here(config: Config, source: Source) -> Iterator[str]:
    """What this machine does not have of what the configuration names: certificates, folders. A
    gateway finds that out when it starts, or when the backend is first used."""
    try:
        guarded = read_tls(config.tls) is not None and (
            bool(config.api_keys) or config.tls.client_ca is not None
        )
        for door in (config.grpc, config.http):
            if door.listen:
                address = parse_address(door.listen)
                check_exposure(address, guarded=guarded, insecure_allowed=door.allow_insecure_bind)
    except ListenError as error:
        yield str(error)
    tables = config.all_backends()
    folders = [
        (f"{source('models')}.{quoted(public)}", table.name)
        for public, table in config.models.items()
        if tables[table.backend or config.first_backend()].kind == "local"
    ]
    folders += [(source("engine.models"), name) for name in config.engine.models]
    folders += [
        (f"{source('backends')}.{name}.models", model)
        for name, table in config.backends.items()
        if isinstance(table, LocalBackendTable)
        for model in table.models
    ]
    for where, name in folders:
        is_folder = name.startswith(("/", ".", "~"))
        if is_folder and not (Path(name).expanduser() / "config.json").is_file():
            yield f"{where}: {name!r} is no folder of a model: it has no config.json"


def _loops_to_itself(config: Config, source: Source) -> Iterator[str]:
    """A client's variables, such as TINKER_BASE_URL, may lead to this very gateway."""
    for name, table in config.backends.items():
        if not isinstance(table, ServiceTable) or not config.http.listen:
            continue
        url = urlsplit(table.base_url)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        if f"{host}:{url.port}" == config.http.listen.replace("localhost", "127.0.0.1"):
            where = table.sources.get("base_url", f"{source('backends')}.{name}.base_url")
            yield f"{where}: {table.base_url!r} is this gateway's own address (http.listen)"
