"""`tinkergate checkpoints download`: a checkpoint brought to this machine."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.connection import GatewayAddress, talks_to_gateway
from tinkergate.cli.exits import USAGE, CommandFailed
from tinkergate.cli.sizes import size_text

if TYPE_CHECKING:
    from tinkergate_client import Downloaded, DownloadProgress

_STEPS = 10
"""How many lines tell of the progress where there is no terminal."""


Tell = Callable[["DownloadProgress"], None]


@talks_to_gateway
def download(
    gateway: GatewayAddress,
    path: Annotated[str, typer.Argument(metavar="PATH", help="tinker://...")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the files go; ./NAME if absent."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one .tar.gz instead of the files."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Download one checkpoint, and tell the SHA-256 of what came. What was broken off goes on when
    the same command is given again."""
    if to is not None and archive is not None:
        raise CommandFailed("--to and --archive exclude each other", USAGE)
    with gateway.client() as client:
        try:
            with _progress(quiet=as_json) as tell:
                if archive is not None:
                    got: Sequence[Downloaded] = [
                        client.checkpoints.download_archive(
                            path, archive, overwrite=overwrite, progress=tell
                        )
                    ]
                else:
                    folder = to or Path(path.rstrip("/").rpartition("/")[2] or "checkpoint")
                    got = client.checkpoints.download(
                        path, folder, overwrite=overwrite, progress=tell
                    )
        except FileExistsError as error:
            raise CommandFailed(f"{error}: --overwrite", USAGE) from error
        except OSError as error:
            raise CommandFailed(str(error)) from error
    for file in got:
        _tell_result(file, as_json=as_json)


def _tell_result(file: Downloaded, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "name": file.name,
            "path": os.fspath(file.path),
            "size_bytes": file.size_bytes,
            "sha256": file.sha256,
            "verified": file.verified,
        }
        typer.echo(json.dumps(facts))
        return
    checked = "verified" if file.verified else "nothing to verify it by"
    typer.echo(f"{file.sha256}  {size_text(file.size_bytes):>10}  {file.path}  ({checked})")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Tell | None]:
    """A bar on a terminal, some lines elsewhere, on stderr: stdout is for the result."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as tell:
            yield tell
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None)

        def tell(progress: DownloadProgress) -> None:
            shown.update(
                task,
                description=progress.name,
                completed=progress.done_bytes,
                total=progress.total_bytes,
            )

        yield tell


class _Lines:
    """A line at the beginning, and one for each tenth."""

    def __init__(self) -> None:
        self._told = -1
        self._begin = time.monotonic()
        self._first_bytes = 0

    def __call__(self, progress: DownloadProgress) -> None:
        done, total = progress.done_bytes, progress.total_bytes
        step = done * _STEPS // total if total else _STEPS
        if step <= self._told:
            return
        if self._told < 0:
            self._begin, self._first_bytes = time.monotonic(), done
        self._told = step
        seconds = time.monotonic() - self._begin
        speed = (done - self._first_bytes) / seconds if seconds > 0 else 0.0
        rate = f", {size_text(round(speed))}/s" if speed else ""
        percent = 100 * done // total if total else 100
        typer.echo(f"{percent:3d} %  {size_text(done)} of {size_text(total)}{rate}", err=True)
