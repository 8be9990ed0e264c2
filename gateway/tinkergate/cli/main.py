"""The `tinkergate` command: its subcommands, and how a failure becomes an exit code.

Modules of commands are imported when the command starts, so at their top they import nothing
heavy: not the client, not protobuf, not torch. That keeps `tinkergate --help` quick.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Annotated

import typer

from tinkergate import __version__
from tinkergate.cli.exits import CommandFailed

app = typer.Typer(
    name="tinkergate",
    help="A gRPC gateway for Tinker-style fine-tuning: train, sample and score language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tinkergate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


for _name in ("serve", "train", "sample", "score", "models", "checkpoints", "status"):
    if importlib.util.find_spec(f"tinkergate.cli.{_name}") is None:
        continue
    _module = importlib.import_module(f"tinkergate.cli.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(_name)(getattr(_module, _name))


def main() -> None:
    """Run the command and exit with its code."""
    try:
        app()
    except CommandFailed as failure:
        typer.echo(f"tinkergate: {failure.message}", err=True)
        sys.exit(failure.code)


__all__ = ["app", "main"]
