"""The `tinkergate` command: its subcommands, and how a failure becomes an exit code.

Modules of commands are imported when the command starts, so at their top they import nothing
heavy: not the client, not protobuf, not torch. That keeps `tinkergate --help` quick.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tinkergate import __version__
from tinkergate.cli import checkpoints, config, models
from tinkergate.cli.exits import CommandFailed
from tinkergate.cli.render import render
from tinkergate.cli.sample import sample
from tinkergate.cli.score import score
from tinkergate.cli.serve import serve
from tinkergate.cli.status import status
from tinkergate.cli.train import train

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


app.command("serve", short_help="Run a gateway.")(serve)
app.command("train", short_help="Fine-tune a model on a file of conversations.")(train)
app.command("sample", short_help="Draw answers to a prompt.")(sample)
app.command("score", short_help="Score sequences: JSON lines in and out.")(score)
app.command("render", short_help="Show conversations as the model sees them.")(render)
app.add_typer(models.app, name="models", short_help="Name base models on this machine.")
app.add_typer(checkpoints.app, name="checkpoints", short_help="Look after saved checkpoints.")
app.add_typer(config.app, name="config", short_help="Look at a gateway's configuration.")
app.command("status", short_help="Show what a gateway is doing.")(status)


def main() -> None:
    """Run the command and exit with its code."""
    try:
        app()
    except CommandFailed as failure:
        typer.echo(f"tinkergate: {failure.message}", err=True)
        sys.exit(failure.code)
