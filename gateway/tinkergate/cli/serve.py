"""`tinkergate serve`: run a gateway."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.exits import FAILED, USAGE, CommandFailed

if TYPE_CHECKING:
    from tinkergate.server import Addresses


class LogFormatChoice(StrEnum):
    """How the log is written."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"


class ProfileChoice(StrEnum):
    """What the HTTP door offers."""

    FULL = "full"
    MINT = "mint"


class CapacityChoice(StrEnum):
    """What the trainers and samplers of Loops' dialect are told to be."""

    SERVERLESS = "serverless"
    DEDICATED = "dedicated"


class LogLevelChoice(StrEnum):
    """The least level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    grpc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where to listen. Port 0 takes any free port. [default: 127.0.0.1:7700]",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where to listen for programs that speak Tinker's or Loops' HTTP, such as their "
            "SDKs. [default: nowhere]",
        ),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="How clients reach the HTTP door, where that is not its own address.",
        ),
    ] = None,
    profile: Annotated[
        ProfileChoice | None,
        typer.Option(help="What the HTTP door offers: all, or what MinT has. [default: full]"),
    ] = None,
    loops_capacity: Annotated[
        CapacityChoice | None,
        typer.Option(
            help="What the HTTP door tells Loops' SDK that trainers and samplers are: shared, or "
            "its own. [default: serverless]"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder for everything that survives a restart. "
            "[default: ~/.local/share/tinkergate]",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file with settings; flags go before it."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help="A base model to serve; can be given several times, the first is the default "
            "model. [default: SmolLM2-135M-Instruct and all that `tinkergate models add` named]",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="Call a base model of the default backend NAME; MODEL is its own name or a "
            "folder. Can be given several times.",
        ),
    ] = None,
    default_backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Where calls go that name no backend. [default: the first]"
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Serve TLS with this certificate chain (PEM)."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's private key (PEM).")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Let in only clients with a certificate of this authority (PEM)."
        ),
    ] = None,
    allow_insecure_bind: Annotated[
        bool | None,
        typer.Option(
            "--allow-insecure-bind",
            help="Listen beyond loopback without TLS and a key: everybody may then do everything.",
        ),
    ] = None,
    reflection: Annotated[
        bool | None,
        typer.Option(
            "--reflection/--no-reflection",
            help="Whether clients such as grpcurl may ask for the contract. [default: yes]",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long running work may go on after SIGTERM. [default: 30]",
        ),
    ] = None,
    log_level: Annotated[
        LogLevelChoice | None, typer.Option(help="The least level to log. [default: info]")
    ] = None,
    log_format: Annotated[
        LogFormatChoice | None,
        typer.Option(help="How to log; auto is human on a terminal, else JSON. [default: auto]"),
    ] = None,
) -> None:
    """Run a gateway until SIGTERM or Ctrl-C: with the embedded engine, other backends, or both.

    When clients can connect it prints one line to stdout, `listening grpc=HOST:PORT`, with
    `http=HOST:PORT` behind it if it listens there too; the log goes to stderr. The first signal
    lets running work end (--grace), a second one stops at once.

    Every setting can also be given in the file of --config or as an environment variable; flags go
    before the environment, and that before the file. The API key is TINKERGATE_API_KEY: it has no
    flag, because other users of the machine can see flags. MINT_API_KEY and TINKER_API_KEY alone
    add the backends "mint" and "tinker".
    """
    # gRPC's own lines (of handshakes that fail, say) would be no JSON. It reads this when loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tinkergate.config import ConfigError, load_config

    flags = {
        "grpc.listen": grpc,
        "http.listen": http,
        "http.public_url": public_url,
        "profile": profile and profile.value,
        "http.loops_capacity": loops_capacity and loops_capacity.value,
        "default_backend": default_backend,
        "models": _aliases(alias) if alias else None,
        "data_dir": data_dir,
        "engine.models": tuple(model) if model else None,
        "tls.cert": tls_cert,
        "tls.key": tls_key,
        "tls.client_ca": tls_client_ca,
        "grpc.allow_insecure_bind": allow_insecure_bind,
        "http.allow_insecure_bind": allow_insecure_bind,
        "grpc.reflection": reflection,
        "grace": grace,
        "log.level": log_level and log_level.value,
        "log.format": log_format and log_format.value,
    }
    try:
        settings = load_config(flags, file=config)
    except ConfigError as error:
        raise CommandFailed(str(error), USAGE) from error

    from tinkergate.server import StartError, run

    try:
        run(settings, _announce)
    except StartError as error:
        raise CommandFailed(str(error), FAILED) from error


def _aliases(given: list[str]) -> dict[str, dict[str, str]]:
    """The tables of `[models]` that `--alias` stands for."""
    tables = {}
    for text in given:
        name, separator, model = text.partition("=")
        if not (name and separator and model):
            raise CommandFailed(f"--alias {text!r} is no NAME=MODEL", USAGE)
        tables[name] = {"name": model}
    return tables


def _announce(addresses: Addresses) -> None:
    # Programs wait for this line; through a pipe it would else stay in the buffer.
    doors = " ".join(f"{name}={address}" for name, address in addresses.items())
    print(f"listening {doors}", flush=True)
