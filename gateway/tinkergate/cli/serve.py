"""`tinkergate serve`: run a gateway."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.exits import FAILED, USAGE, CommandFailed

if TYPE_CHECKING:
    from tinkergate.ingress.address import Address


class LogFormatChoice(StrEnum):
    """How the log is written."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"


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
    """Run a gateway with the embedded engine, until SIGTERM or Ctrl-C.

    When clients can connect it prints one line to stdout, `listening grpc=HOST:PORT`; the log goes
    to stderr. The first signal lets running work end (--grace), a second one stops at once.

    Every setting can also be given in the file of --config or as an environment variable; flags go
    before the environment, and that before the file. The API key is TINKERGATE_API_KEY: it has no
    flag, because other users of the machine can see flags.
    """
    # gRPC's own lines (of handshakes that fail, say) would be no JSON. It reads this when loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tinkergate.config import ConfigError, load_config

    flags = {
        "grpc.listen": grpc,
        "data_dir": data_dir,
        "engine.models": tuple(model) if model else None,
        "tls.cert": tls_cert,
        "tls.key": tls_key,
        "tls.client_ca": tls_client_ca,
        "grpc.allow_insecure_bind": allow_insecure_bind,
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


def _announce(address: Address) -> None:
    # Programs wait for this line; through a pipe it would else stay in the buffer.
    print(f"listening grpc={address}", flush=True)
