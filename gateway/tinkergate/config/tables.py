"""The tables of the file that have names of their own: `[backends.NAME]` and `[models."NAME"]`."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from tinkergate.backends.loops.settings import LoopsSettings
from tinkergate.backends.tinker.settings import TinkerSettings

_TABLE = ConfigDict(extra="forbid", frozen=True)


class LocalBackendTable(BaseModel):
    """An embedded engine, with base models of its own."""

    model_config = _TABLE

    kind: Literal["local"]
    """"local"."""
    models: tuple[str, ...] = ()
    """The base models to serve: names, hub ids that were downloaded, or folders; those that
    `[models]` gives to this backend are served too. Without any of both: SmolLM2-135M-Instruct and
    all that `tinkergate models add` named."""
    device: str | None = None
    """Where to compute, such as "cpu" or "cuda:0"; absent means a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The type of the base model's weights; absent means float32 on CPU and bfloat16 on GPU."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """How many threads to compute with on CPU; absent leaves it to PyTorch."""


class ServiceTable(BaseModel, ABC):
    """A service that does a backend's work."""

    model_config = ConfigDict(extra="allow", frozen=True)

    settings_type: ClassVar[type[TinkerSettings] | type[LoopsSettings]]
    own: ClassVar[tuple[str, ...]] = ("name", "dialect", "base_url", "api_key")
    """The settings of that type that are no options of the table."""

    base_url: str = ""
    api_key_env: str = ""
    api_key_file: Path | None = None

    _api_key: SecretStr = PrivateAttr(default=SecretStr(""))
    _sources: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def options(cls) -> Mapping[str, Any]:
        """The settings of the service that a table may have beside its own, with their types."""
        hints = get_type_hints(cls.settings_type)
        return {name: hint for name, hint in hints.items() if name not in cls.own}

    @model_validator(mode="after")
    def _options(self) -> Self:
        """Whatever else is given is a setting of the service's, in its type."""
        problems = []
        options = self.options()
        for name, value in (self.model_extra or {}).items():
            if name == "api_key":
                problems.append(
                    "api_key: keys do not stand in this file; name a variable by api_key_env, or a "
                    "file of its own by api_key_file"
                )
            elif name not in options:
                known = {*options, *type(self).model_fields}
                close = difflib.get_close_matches(name, known, n=1)
                meant = f"; did you mean {close[0]!r}?" if close else ""
                problems.append(f"there is no setting {name!r}{meant}")
            else:
                try:
                    _checked(options[name], value)
                except ValueError as error:
                    problems.append(f"{name}: {error}, not {value!r}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    @abstractmethod
    def key_variable(self) -> str:
        """The environment variable that holds the key unless the table names another."""

    @property
    @abstractmethod
    def variables(self) -> Mapping[str, str]:
        """The environment variables of other settings, by the settings."""

    @property
    def has_key(self) -> bool:
        """Whether an API key was found where the table says."""
        return bool(self._api_key.get_secret_value())

    @property
    def sources(self) -> Mapping[str, str]:
        """Where the API key and what the environment gives come from, if not from the table."""
        return self._sources

    def completed(
        self, name: str, api_key: str, given: Mapping[str, str], sources: Mapping[str, str]
    ) -> Self:
        """The table with what the environment and files say; `given` has settings by name. Raises
        ValueError for one that cannot be."""
        table = self.model_copy(update=dict(given))
        table._api_key, table._sources = SecretStr(api_key), sources
        table.service(name)
        return table

    @abstractmethod
    def service(self, name: str) -> TinkerSettings | LoopsSettings:
        """All that the backend of that name is to know. Raises ValueError."""

    def _arguments(self, name: str) -> dict[str, Any]:
        types = self.options()
        options = {key: _checked(types[key], value) for key, value in self._extra().items()}
        return {
            "name": name,
            "base_url": self.base_url,
            "api_key": self._api_key.get_secret_value(),
            **options,
        }

    def _extra(self) -> dict[str, Any]:
        return self.model_extra or {}


class RemoteBackendTable(ServiceTable):
    """Tinker, MinT, or another gateway that speaks as they do."""

    settings_type = TinkerSettings

    kind: Literal["tinker", "mint"]
    """"tinker" or "mint": what it speaks."""
    base_url: str = ""
    """Where it is, http:// or https://, with the path before `/api/v1` if there is one. Absent
    means `TINKER_BASE_URL` or `MINT_BASE_URL`, and without that the service's own address."""
    api_key_env: str = ""
    """The environment variable that holds the API key. Absent means `TINKER_API_KEY` or
    `MINT_API_KEY`."""
    api_key_file: Path | None = None
    """A file that holds the API key and nothing else, in place of a variable."""

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key unless the table names another."""
        return f"{self.kind.upper()}_API_KEY"

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables of other settings, by the settings."""
        return {"base_url": f"{self.kind.upper()}_BASE_URL"}

    def service(self, name: str) -> TinkerSettings:
        """All that the backend of that name is to know. Raises ValueError."""
        return TinkerSettings(dialect=self.kind, **self._arguments(name))


class LoopsBackendTable(ServiceTable):
    """Baseten Loops, or another gateway that speaks as it does."""

    settings_type = LoopsSettings

    kind: Literal["loops"]
    """"loops"."""
    base_url: str = ""
    """Where the control plane is, http:// or https://. Absent means `LOOPS_BASE_URL`, and without
    that Baseten's own address."""
    api_key_env: str = ""
    """The environment variable that holds the API key. Absent means `BASETEN_API_KEY`."""
    api_key_file: Path | None = None
    """A file that holds the API key and nothing else, in place of a variable."""

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key unless the table names another."""
        return "BASETEN_API_KEY"

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables of other settings, by the settings."""
        return {"base_url": "LOOPS_BASE_URL", "team": "LOOPS_TEAM"}

    def service(self, name: str) -> LoopsSettings:
        """All that the backend of that name is to know. Raises ValueError."""
        return LoopsSettings(**self._arguments(name))


def _checked(kind: Any, value: Any) -> Any:
    """A setting of the service's in its type. Raises ValueError."""
    try:
        checked = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(error.errors(include_url=False)[0]["msg"]) from None
    is_number = isinstance(checked, int | float) and not isinstance(checked, bool)
    if is_number and not 0 < checked < float("inf"):
        raise ValueError("must be a positive finite number")
    return checked


BackendTable = Annotated[
    LocalBackendTable | RemoteBackendTable | LoopsBackendTable, Discriminator("kind")
]
"""`[backends.NAME]`, where NAME is what requests choose the backend by."""


class ModelTable(BaseModel):
    """A base model under a public name, which is the table's."""

    model_config = _TABLE

    backend: str = ""
    """The backend that it belongs to; absent means the default backend."""
    name: str = ""
    """What the backend calls it, or for a local backend a folder, which may begin with `~`; absent
    means the same as here."""
    aliases: tuple[str, ...] = ()
    """Other names that callers may use for it."""
    tokenizer: str = ""
    """What clients are to load the tokenizer by, a hub id or a folder; absent leaves it to the
    backend."""
