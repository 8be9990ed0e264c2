"""Which folders can be base models: a causal language model with safetensors weights and a
tokenizer, in the Hugging Face layout. Nothing in such a folder is ever run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tinkergate.errors import GatewayError, invalid_field

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def check_model_folder(folder: Path, field: str = "source") -> None:
    """Raise GatewayError, naming `field`, unless the folder holds what a base model needs:
    config.json of a causal language model without code of its own, all shards of its weights as
    readable safetensors, and a tokenizer. Tensors are not read."""

    def refuse(rule: str) -> GatewayError:
        return invalid_field(field, f"{str(folder)!r} {rule}")

    if not folder.is_dir():
        raise refuse("is no folder")
    config = _read_json(folder / CONFIG_FILE)
    if config is None:
        raise refuse(f"has no readable {CONFIG_FILE}; must be a Hugging Face model folder")
    if config.get("auto_map"):
        raise refuse("brings code of its own (auto_map in config.json), which is never run")
    architectures = config.get("architectures") or []
    if not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise refuse(f"holds {architectures or 'no architecture'}; must be a causal language model")
    for name in _weight_files(folder, refuse):
        try:
            with safe_open(folder / name, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise refuse(f"has a missing or damaged weight file {name}: {error}") from error
    check_tokenizer(folder, field)


def check_tokenizer(folder: Path, field: str = "source") -> None:
    """Raise GatewayError, naming `field`, unless the folder holds the files of a tokenizer."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise invalid_field(field, f"{str(folder)!r} has no tokenizer ({', '.join(_TOKENIZERS)})")


def _weight_files(folder: Path, refuse: Callable[[str], GatewayError]) -> list[str]:
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    index = _read_json(folder / INDEX_FILE)
    if index is not None and isinstance(index.get("weight_map"), dict) and index["weight_map"]:
        return sorted(set(index["weight_map"].values()))
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise refuse(f"has pickled weights ({pickles[0]}), which can run code; must be safetensors")
    raise refuse(f"has no weights ({WEIGHTS_FILE} or {INDEX_FILE})")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
