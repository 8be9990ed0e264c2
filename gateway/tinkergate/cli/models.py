"""`tinkergate models`: the base models on this machine, by name, and those of a gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.connection import GatewayAddress, talks_to_gateway
from tinkergate.cli.exits import FAILED, USAGE, CommandFailed

if TYPE_CHECKING:
    from tinkergate.engine.model_files import ModelEntry, ModelFiles

app = typer.Typer(
    help="Name base models on this machine, and list a gateway's.", no_args_is_help=True
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name or an alias.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the models that have names, the default one first."""
    with _model_files() as files:
        for entry in files.list():
            if as_json:
                typer.echo(json.dumps(_facts(entry)))
            else:
                where = entry.folder or "not converted yet: done at first use"
                typer.echo(f"{entry.name}  ({', '.join(entry.aliases) or 'no alias'})  {where}")


@app.command()
@talks_to_gateway
def served(gateway: GatewayAddress, as_json: JsonOption = False) -> None:
    """List the base models that a gateway serves, with the backend of each."""
    from dataclasses import asdict

    from tinkergate.cli.status import base_model_status, render_base_model

    with gateway.client() as client:
        capabilities = client.capabilities()
    for model in map(base_model_status, capabilities.models):
        if as_json:
            typer.echo(json.dumps(asdict(model)))
        else:
            aliases = f"  ({', '.join(model.aliases)})" if model.aliases else ""
            typer.echo(render_base_model(model) + aliases)
    for backend in capabilities.backends:
        if backend.unavailable:
            typer.echo(f"backend {backend.name} is unavailable: {backend.unavailable}", err=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A Hugging Face folder, or a hub id, which is downloaded."
        ),
    ],
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name for it; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model a name. `tinkergate serve --model NAME` then serves it."""
    with _model_files() as files:
        entry = files.add(name, source, aliases=alias or ())
        typer.echo(json.dumps(_facts(entry)) if as_json else f"{entry.name}  {entry.folder}")


@app.command()
def path(name: NameArgument, as_json: JsonOption = False) -> None:
    """Print the folder of a model. The default one is converted the first time."""
    with _model_files() as files:
        folder = files.path(name)
        typer.echo(json.dumps({"name": name, "folder": str(folder)}) if as_json else str(folder))


@app.command()
def remove(name: NameArgument, as_json: JsonOption = False) -> None:
    """Forget a model's names. Its files stay."""
    with _model_files() as files:
        files.remove(name)
        typer.echo(json.dumps({"removed": name}) if as_json else f"removed {name}")


@contextmanager
def _model_files() -> Iterator[ModelFiles]:
    """The models of this machine; failures end the command. What takes long is told on stderr."""
    from tinkergate.engine.model_files import ModelFiles
    from tinkergate.errors import GatewayError, Kind

    try:
        yield ModelFiles(report=lambda line: typer.echo(line, err=True))
    except GatewayError as error:
        wrong_use = error.kind in (Kind.INVALID, Kind.NOT_FOUND)
        raise CommandFailed(str(error), USAGE if wrong_use else FAILED) from error


def _facts(entry: ModelEntry) -> dict[str, object]:
    folder = entry.folder
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "source": entry.source,
        "folder": str(folder) if folder else None,
    }
