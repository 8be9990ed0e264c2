"""Base models by name, and the local folders that they are in."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tinkergate.engine import default_model
from tinkergate.engine.default_model import Report
from tinkergate.engine.model_folder import check_model_folder, check_tokenizer
from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field

DEFAULT_MODEL = default_model.NAME
DEFAULT_ALIASES = ("SmolLM2-135M-Instruct", "smollm2-135m", "default")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched from a hub: neither pickles nor code."""


@dataclass(frozen=True)
class ModelEntry:
    """A base model that can be named."""

    name: str
    aliases: tuple[str, ...]
    source: str
    """A folder, a hub id, or the package that the default model comes in."""
    folder: Path | None
    """Where it is; None while the default model is not converted or not installed."""


class _Added(BaseModel):
    source: str
    folder: Path
    aliases: tuple[str, ...] = ()


class _Registry(BaseModel):
    models: dict[str, _Added] = {}


def default_cache_dir() -> Path:
    """TINKERGATE_CACHE_DIR, else tinkergate in the user's cache folder (XDG_CACHE_HOME)."""
    if own := os.environ.get("TINKERGATE_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinkergate"


class ModelFiles:
    """The base models of this machine: the default one and those that were added.

    Names are kept in `models.json` in the cache folder. Several processes may use it at once.
    Loading PyTorch is left until the default model has to be converted.
    """

    def __init__(self, cache_dir: Path | None = None, *, report: Report | None = None) -> None:
        """`report` is told, in a line of text, of what takes long."""
        self._dir = cache_dir or default_cache_dir()
        self._report: Report = report or (lambda _line: None)

    def path(self, name: str) -> Path:
        """The Hugging Face folder of a model: of a name or alias, of a hub id that was downloaded
        before, or of a path to a folder (absolute, or beginning with "." or "~"). Converts the
        default model the first time. Never downloads.

        Raises GatewayError: NOT_FOUND for an unknown name, PRECONDITION if the default model's
        package is missing, INVALID if a folder is gone or is no base model.
        """
        known = self._resolve(name)
        if known == DEFAULT_MODEL:
            return default_model.provide(self._dir / "models", self._report)
        if known is not None:
            folder = self._read().models[known].folder
        elif name.startswith(("/", ".", "~")):
            folder = Path(name).expanduser().resolve()
        else:
            folder = _downloaded(name) or _raise_unknown(name)
        check_model_folder(folder, "model")
        return folder

    def tokenizer_path(self, name: str) -> Path:
        """The folder of a model's tokenizer, as `path` finds it; of a hub id or a folder the
        weights need not be there. Raises GatewayError as `path` does."""
        if self._resolve(name) is not None:
            return self.path(name)
        if name.startswith(("/", ".", "~")):
            folder = Path(name).expanduser().resolve()
        else:
            folder = _downloaded(name) or _raise_no_tokenizer(name)
        check_tokenizer(folder, "model")
        return folder

    def list(self) -> Sequence[ModelEntry]:
        """All models that have names here, the default one first."""
        added = self._read().models
        return (
            self._default_entry(),
            *(
                ModelEntry(name, model.aliases, model.source, model.folder)
                for name, model in sorted(added.items())
            ),
        )

    def add(self, name: str, source: str, *, aliases: Iterable[str] = ()) -> ModelEntry:
        """Give a name, and aliases, to a folder or to a hub id such as "Qwen/Qwen3-0.6B", which is
        downloaded into the hub's own cache. The name may be used again for the same source.

        Raises GatewayError: INVALID if a name is malformed or taken, or the source is no causal
        language model with safetensors weights and a tokenizer; UNAVAILABLE if the hub cannot be
        reached; NOT_FOUND if it does not have the model.
        """
        aliases = tuple(aliases)
        for field, text in [("name", name), *(("alias", alias) for alias in aliases)]:
            if not _NAME.fullmatch(text):
                raise invalid_field(
                    field, f"{text!r} must be letters, digits and .-_ with at most one / between"
                )
        folder = self._fetch(source)
        with self._changing() as registry:
            for text in (name, *aliases):
                owner = _owner(registry, text)
                if owner is not None and (owner != name or owner == DEFAULT_MODEL):
                    raise invalid_field("name", f"{text!r} is the name of {owner!r} already")
            registry.models[name] = _Added(source=source, folder=folder, aliases=aliases)
        return ModelEntry(name, aliases, source, folder)

    def remove(self, name: str) -> None:
        """Forget a name or alias's model. Its files stay where they are. Raises GatewayError."""
        with self._changing() as registry:
            owner = _owner(registry, name) or _raise_unknown(name)
            if owner == DEFAULT_MODEL:
                raise invalid_field("name", f"{name!r} is the default model; it cannot be removed")
            del registry.models[owner]

    def _resolve(self, name: str) -> str | None:
        return _owner(self._read(), name)

    def _default_entry(self) -> ModelEntry:
        try:
            folder = default_model.folder_of(default_model.find_gguf(), self._dir / "models")
        except GatewayError:
            folder = None
        ready = folder is not None and default_model.is_ready(folder)
        return ModelEntry(
            DEFAULT_MODEL, DEFAULT_ALIASES, default_model.PACKAGE, folder if ready else None
        )

    def _fetch(self, source: str) -> Path:
        local = Path(source).expanduser()
        if local.exists() or not _HUB_ID.fullmatch(source):
            folder = local.resolve()
        else:
            folder = _download(source, self._report)
        check_model_folder(folder)
        return folder

    def _read(self) -> _Registry:
        try:
            return _Registry.model_validate_json(self._registry_file.read_bytes())
        except FileNotFoundError:
            return _Registry()
        except (OSError, ValidationError) as error:
            raise GatewayError(
                Kind.PRECONDITION,
                ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
                f"the list of models {self._registry_file} cannot be read: {error}",
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[_Registry]:
        """The registry, to be changed; written back whole when the block ends without error."""
        self._dir.mkdir(parents=True, exist_ok=True)
        with (self._dir / ".models.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            registry = self._read()
            yield registry
            with tempfile.NamedTemporaryFile("w", dir=self._dir, delete=False) as file:
                json.dump(registry.model_dump(mode="json"), file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(self._registry_file)

    @property
    def _registry_file(self) -> Path:
        return self._dir / "models.json"


def _owner(registry: _Registry, name: str) -> str | None:
    """The model that a name or an alias stands for."""
    if name == DEFAULT_MODEL or name in DEFAULT_ALIASES:
        return DEFAULT_MODEL
    for owner, model in registry.models.items():
        if name == owner or name in model.aliases:
            return owner
    return None


def _raise_unknown(name: str) -> Any:
    raise GatewayError(
        Kind.NOT_FOUND,
        ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
        f"there is no base model {name!r} here; `tinkergate models list` shows those that are, "
        "`tinkergate models add` adds one",
    )


def _raise_no_tokenizer(name: str) -> Any:
    if not _HUB_ID.fullmatch(name):
        _raise_unknown(name)
    raise GatewayError(
        Kind.NOT_FOUND,
        ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
        f"{name!r} was not downloaded to this machine; its tokenizer alone is enough: `hf download "
        f"{name} --include 'token*' --include '*.jinja' --include 'generation_config.json'`",
    )


def _downloaded(hub_id: str) -> Path | None:
    """The folder of a hub id in the hub's cache on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not _HUB_ID.fullmatch(hub_id):
        return None
    try:
        folder = snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError):  # the latter for ids that the hub refuses
        return None
    return Path(folder)


def _download(hub_id: str, report: Report) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    report(f"downloading {hub_id}")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS))
    except LocalEntryNotFoundError as error:
        raise GatewayError(
            Kind.UNAVAILABLE,
            ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"{hub_id!r} is no folder here, and the hub cannot be reached to download it; "
            "give the path of a folder instead",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise GatewayError(
            Kind.NOT_FOUND,
            ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
            f"{hub_id!r} is no folder here, and the hub does not give it: {error}",
        ) from error
