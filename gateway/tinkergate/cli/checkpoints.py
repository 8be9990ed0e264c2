"""`tinkergate checkpoints`: what a gateway has saved."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.connection import GatewayAddress, talks_to_gateway
from tinkergate.cli.download import download
from tinkergate.cli.exits import USAGE, CommandFailed
from tinkergate.cli.sizes import size_text

if TYPE_CHECKING:
    from tinkergate_client import Checkpoint

app = typer.Typer(help="Look after saved checkpoints.", no_args_is_help=True)

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="tinker://...")]
NEVER = "never"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
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
                    f"rank {checkpoint.lora_rank}  {size_text(checkpoint.size_bytes)}  "
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


@app.command()
@talks_to_gateway
def publish(gateway: GatewayAddress, path: PathArgument, as_json: JsonOption = False) -> None:
    """Mark a checkpoint as one that everybody may read."""
    with gateway.client() as client:
        _show(client.checkpoints.publish(path), as_json=as_json)


@app.command()
@talks_to_gateway
def unpublish(gateway: GatewayAddress, path: PathArgument, as_json: JsonOption = False) -> None:
    """Take the mark away that `publish` made."""
    with gateway.client() as client:
        _show(client.checkpoints.unpublish(path), as_json=as_json)


@app.command()
@talks_to_gateway
def ttl(
    gateway: GatewayAddress,
    path: PathArgument,
    life: Annotated[
        str,
        typer.Argument(metavar="TTL", help="From now on: 90s, 30m, 12h, 7d; or never."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Say after how long a checkpoint is removed by itself."""
    span = _span(life)
    with gateway.client() as client:
        _show(client.checkpoints.set_ttl(path, span), as_json=as_json)


@app.command()
@talks_to_gateway
def copy(
    gateway: GatewayAddress,
    path: PathArgument,
    life: Annotated[
        str, typer.Option("--ttl", help="How long the copy lives: 90s, 30m, 12h, 7d; or never.")
    ] = NEVER,
    as_json: JsonOption = False,
) -> None:
    """Copy a checkpoint; the copy stays when the original is deleted."""
    span = _span(life)
    with gateway.client() as client:
        _show(client.checkpoints.copy(path, ttl=span), as_json=as_json)


@app.command()
@talks_to_gateway
def files(
    gateway: GatewayAddress,
    path: PathArgument,
    links: Annotated[
        bool,
        typer.Option("--links", help="Tell the links too, which need no key for 15 minutes."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the files of a checkpoint: SHA-256, size, name, and with --links where they are."""
    with gateway.client() as client:
        for file in client.checkpoints.files(path):
            if as_json:
                typer.echo(json.dumps(asdict(file), default=lambda value: value.isoformat()))
                continue
            told = f"{file.sha256 or '-':64}  {size_text(file.size_bytes):>10}  {file.name}"
            typer.echo(f"{told}  {file.url or '-'}" if links else told)


app.command()(download)


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


def _span(life: str) -> timedelta | None:
    """A time to live as it is written in a command; None for ever."""
    if life == NEVER:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhd])", life)
    if match is None:
        raise CommandFailed(f"{life!r} is no time to live such as 90s, 30m, 12h or 7d", USAGE)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _json(checkpoint: Checkpoint) -> str:
    return json.dumps(asdict(checkpoint), default=lambda value: value.isoformat())


def _show(checkpoint: Checkpoint, *, as_json: bool) -> None:
    if as_json:
        typer.echo(_json(checkpoint))
        return
    facts = asdict(checkpoint)
    facts["size_bytes"] = size_text(checkpoint.size_bytes)
    for name, value in facts.items():
        if value or name == "path":
            typer.echo(f"{name:>14}  {value}")
