"""Receiving the files of an adapter."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from tinkergate.core.settings import CoreSettings
from tinkergate.errors import GatewayError, Kind, invalid_field
from tinkergate.v1 import ErrorReason, FilePiece

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_CONFIG_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class ReceivedAdapter:
    """A PEFT adapter in a folder of its own."""

    files: Mapping[str, Path]
    """By file name."""
    base_model: str
    """What its configuration names; may be empty."""
    rank: int


@asynccontextmanager
async def receive(
    pieces: AsyncIterator[FilePiece], settings: CoreSettings
) -> AsyncIterator[ReceivedAdapter]:
    """The adapter that `pieces` make up; its files are gone when the block ends. Raises INVALID
    for what is no LoRA adapter, or is larger than `settings` allow."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, "", "import-", settings.scratch_dir))
    try:
        files = await _write(folder, pieces, settings.max_import_bytes)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in files:
                raise invalid_field("file", f"{name} is missing")
        config = await asyncio.to_thread(_read_config, files[CONFIG_FILE])
        yield ReceivedAdapter(files, *config)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _write(
    folder: Path, pieces: AsyncIterator[FilePiece], max_bytes: int
) -> Mapping[str, Path]:
    """The files, written off the event loop."""
    paths: dict[str, Path] = {}
    total = 0
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        async for piece in pieces:
            if piece.name not in (CONFIG_FILE, WEIGHTS_FILE):
                raise invalid_field(
                    "file.name", f"is {piece.name!r}; must be {CONFIG_FILE} or {WEIGHTS_FILE}"
                )
            total += len(piece.data)
            if total > max_bytes:
                raise GatewayError(
                    Kind.INVALID,
                    ErrorReason.ERROR_REASON_TOO_LARGE,
                    f"the adapter has more than the {max_bytes} bytes that may be imported",
                )
            if piece.name not in files:
                paths[piece.name] = folder / piece.name
                files[piece.name] = stack.enter_context(paths[piece.name].open("wb"))
            await asyncio.to_thread(files[piece.name].write, piece.data)
    return paths


def _read_config(path: Path) -> tuple[str, int]:
    """The base model and the rank."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise invalid_field(CONFIG_FILE, f"has more than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise invalid_field(CONFIG_FILE, f"is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise invalid_field(CONFIG_FILE, "is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise invalid_field(CONFIG_FILE, f"has peft_type {config.get('peft_type')!r}; must be LORA")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise invalid_field(CONFIG_FILE, f"has r {rank!r}; must be an integer of at least 1")
    base_model = config.get("base_model_name_or_path")
    return (base_model if isinstance(base_model, str) else "", rank)
