"""`tinkergate config`: whether a gateway's configuration is right, and what it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.exits import USAGE, CommandFailed

if TYPE_CHECKING:
    from tinkergate.config import Loaded

app = typer.Typer(help="Look at a gateway's configuration.", no_args_is_help=True)

FileOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The TOML file. [default: that of TINKERGATE_CONFIG, if any]",
    ),
]


@app.command()
def check(config: FileOption = None) -> None:
    """Read the file and the environment as `tinkergate serve` would, and tell all that is wrong.

    Each error is a line: where the setting stands, its name, its value, and the rule. Certificates
    and folders of models are looked for on this machine; services are not called. Exits with 2 if
    something is wrong.
    """
    from tinkergate.config import broken_here

    loaded = _read(config)
    _refuse(tuple(broken_here(loaded.config, loaded.source)))
    backends = ", ".join(loaded.config.all_backends()) or "none"
    models = len(loaded.config.models)
    typer.echo(f"ok: backends: {backends}; models named: {models}")


@app.command()
def show(config: FileOption = None) -> None:
    """Print every setting with its value and where that comes from. Secrets are not shown."""
    from tinkergate.config.showing import shown

    for line in shown(_read(config)):
        typer.echo(line)


def _read(file: Path | None) -> Loaded:
    from tinkergate.config import ConfigError, read_config

    try:
        return read_config({}, file=file)
    except ConfigError as error:
        _refuse(error.problems)
        raise


def _refuse(problems: tuple[str, ...]) -> None:
    """End the command with a line for each problem, if there is one."""
    if problems:
        *others, last = problems
        for problem in others:
            typer.echo(f"tinkergate: {problem}", err=True)
        raise CommandFailed(last, USAGE)
