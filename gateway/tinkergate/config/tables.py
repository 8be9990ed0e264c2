"""The tables of the file that have names of their own: `[backends.NAME]` and `[models."NAME"]`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

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


class RemoteBackendTable(BaseModel):
    """Tinker, MinT, or another gateway that speaks as they do."""

    model_config = ConfigDict(extra="allow", frozen=True)

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

    _api_key: SecretStr = PrivateAttr(default=SecretStr(""))
    _sources: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _options(self) -> Self:
        """Whatever else is given is a setting of the service's, in its type."""
        problems = []
        for name, value in (self.model_extra or {}).items():
            if name == "api_key":
                problems.append(
                    "api_key: keys do not stand in this file; name a variable by api_key_env, or a "
                    "file of its own by api_key_file"
                )
            elif name not in SERVICE_OPTIONS:
                known = {*SERVICE_OPTIONS, *type(self).model_fields}
                close = difflib.get_close_matches(name, known, n=1)
                meant = f"; did you mean {close[0]!r}?" if close else ""
                problems.append(f"there is no setting {name!r}{meant}")
            else:
                try:
                    _checked(name, value)
                except ValueError as error:
                    problems.append(f"{name}: {error}, not {value!r}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def has_key(self) -> bool:
        """Whether an API key was found where the table says."""
        return bool(self._api_key.get_secret_value())

    @property
    def sources(self) -> Mapping[str, str]:
        """Where `base_url` and `api_key` come from, if not from the table itself."""
        return self._sources

    def completed(
        self, name: str, base_url: str, api_key: str, sources: Mapping[str, str]
    ) -> RemoteBackendTable:
        """The table with what the environment and files say. Raises ValueError for a `base_url`
        that is none."""
        table = self.model_copy(update={"base_url": base_url})
        table._api_key, table._sources = SecretStr(api_key), sources
        table.service(name)
        return table

    def service(self, name: str) -> TinkerSettings:
        """All that the backend of that name is to know. Raises ValueError."""
        options = {key: _checked(key, value) for key, value in (self.model_extra or {}).items()}
        return TinkerSettings(
            name=name,
            dialect=self.kind,
            base_url=self.base_url,
            api_key=self._api_key.get_secret_value(),
            **options,
        )


SERVICE_OPTIONS: Mapping[str, Any] = {
    name: hint
    for name, hint in get_type_hints(TinkerSettings).items()
    if name not in ("name", "dialect", "base_url", "api_key")
}
"""The settings of TinkerSettings that a table may have beside its own, with their types."""


def _checked(name: str, value: Any) -> Any:
    """A setting of the service's in its type. Raises ValueError."""
    try:
        checked = TypeAdapter(SERVICE_OPTIONS[name]).validate_python(value)
    except ValidationError as error:
        raise ValueError(error.errors(include_url=False)[0]["msg"]) from None
    is_number = isinstance(checked, int | float) and not isinstance(checked, bool)
    if is_number and not 0 < checked < float("inf"):
        raise ValueError("must be a positive finite number")
    return checked


BackendTable = Annotated[LocalBackendTable | RemoteBackendTable, Discriminator("kind")]
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
