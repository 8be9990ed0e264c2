"""`tinkergate checkpoints`: what a gateway has saved."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.connection import GatewayAddress, talks_to_gateway
from tinkergate.cli.exits import USAGE, CommandFailed

if TYPE_CHECKING:
    from tinkergate_client import Checkpoint

app = typer.Typer(help="Look after saved checkpoints.", no_args_is_help=True)

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="tinker://...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command("list")
@talks_to_gateway
def list_(
    gateway: GatewayAddress,
    model_id: Annotated[str, typer.Option(help="Only those of this model.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List checkpoints, newest first."""
    with gateway.client() as client:
        for checkpoint in client.checkpoints.list(model_id):
            if as_json:
                typer.echo(_json(checkpoint))
            else:
                typer.echo(
                    f"{checkpoint.path}  {checkpoint.type}  {checkpoint.base_model}  "
                    f"rank {checkpoint.lora_rank}  {_size(checkpoint.size_bytes)}  "
                    f"{checkpoint.created:%Y-%m-%d %H:%M}"
                )


@app.command()
@talks_to_gateway
def show(gateway: GatewayAddress, path: PathArgument, as_json: JsonOption = False) -> None:
    """Show one checkpoint."""
    with gateway.client() as client:
        _show(client.checkpoints.get(path), as_json=as_json)


@app.command()
@talks_to_gateway
def delete(gateway: GatewayAddress, path: PathArgument, as_json: JsonOption = False) -> None:
    """Delete one checkpoint for good."""
    with gateway.client() as client:
        client.checkpoints.delete(path)
        typer.echo(json.dumps({"deleted": path}) if as_json else f"deleted {path}")


@app.command("import")
@talks_to_gateway
def import_(
    gateway: GatewayAddress,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What PEFT's save_pretrained wrote.")
    ],
    name: Annotated[str, typer.Option(help="The checkpoint's name; the folder's if absent.")] = "",
    base_model: Annotated[
        str, typer.Option(help="As the gateway names it; the one in the folder if absent.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Take in a LoRA adapter that PEFT saved."""
    with gateway.client() as client:
        try:
            checkpoint = client.checkpoints.import_adapter(folder, name=name, base_model=base_model)
        except FileNotFoundError as error:
            raise CommandFailed(str(error), USAGE) from error
        _show(checkpoint, as_json=as_json)


@app.command()
@talks_to_gateway
def interpolate(
    gateway: GatewayAddress,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="PATH=COEFFICIENT...", help="What to add up, and how much of each."),
    ],
    name: Annotated[str, typer.Option(help="The new checkpoint's name.")] = "",
    for_training: Annotated[
        bool, typer.Option("--training", help="Make a training checkpoint, not one for samplers.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint of the weighted sum of others."""
    pairs = [_source(text) for text in sources]
    with gateway.client() as client:
        checkpoint = client.checkpoints.interpolate(pairs, name=name, for_training=for_training)
        _show(checkpoint, as_json=as_json)


def _source(text: str) -> tuple[str, float]:
    """A path and its coefficient."""
    path, _, coefficient = text.rpartition("=")
    try:
        return path, float(coefficient)
    except ValueError as error:
        told = f"{text!r} is no source; must be PATH=COEFFICIENT, such as tinker://...=0.5"
        raise CommandFailed(told, USAGE) from error


def _json(checkpoint: Checkpoint) -> str:
    return json.dumps(asdict(checkpoint), default=lambda value: value.isoformat())


def _show(checkpoint: Checkpoint, *, as_json: bool) -> None:
    if as_json:
        typer.echo(_json(checkpoint))
        return
    facts = asdict(checkpoint)
    facts["size_bytes"] = _size(checkpoint.size_bytes)
    for name, value in facts.items():
        if value or name == "path":
            typer.echo(f"{name:>14}  {value}")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
