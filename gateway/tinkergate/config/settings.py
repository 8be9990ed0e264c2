"""All settings of a gateway, each with its default and its meaning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tinkergate.config.tables import BackendTable, LocalBackendTable, ModelTable
from tinkergate.core.settings import CoreSettings
from tinkergate.ingress.grpc.settings import GrpcSettings
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.ingress.tls import TlsFiles
from tinkergate.telemetry import LogFormat, LogLevel

ENGINE_BACKEND = "local"
"""The name of the backend that `[engine]` describes."""

Profile = Literal["full", "mint"]


@dataclass(frozen=True)
class EngineSettings:
    """The embedded engine, which is the backend "local"."""

    enabled: bool | None = None
    """Whether there is one. Without it, PyTorch is never loaded. Absent means yes, unless a table
    of `[backends]` is of the kind "local"."""
    models: tuple[str, ...] = ()
    """The base models to serve: names, hub ids that were downloaded, or folders. The first is the
    default model; those that `[models]` gives to this backend are served too. Without any of both:
    SmolLM2-135M-Instruct and all that `tinkergate models add` named."""
    device: str | None = None
    """Where to compute, such as "cpu" or "cuda:0"; absent means a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The type of the base model's weights, "float32" or "bfloat16"; absent means float32 on CPU
    and bfloat16 on GPU."""
    threads: int | None = None
    """How many threads to compute with on CPU; absent leaves it to PyTorch."""


@dataclass(frozen=True)
class LogSettings:
    """The log, which goes to stderr."""

    level: LogLevel = "info"
    """The least level to log: "debug", "info", "warning" or "error"."""
    format: LogFormat = "auto"
    """"json", "human", or "auto": human on a terminal, else JSON."""


def default_data_dir() -> Path:
    """The folder of the user's own gateway, by the XDG rules."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "tinkergate"


@dataclass(frozen=True)
class Config:
    """All settings of a gateway."""

    data_dir: Path = field(default_factory=default_data_dir)
    """The folder of everything that has to survive a restart: database, checkpoints. One gateway
    at a time."""
    store_url: str = ""
    """The database as an SQLAlchemy URL; empty means SQLite in the data folder."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """The keys of which every call has to bring one; empty lets everybody in."""
    grace: float = 30.0
    """How many seconds running operations get to end when the gateway is told to stop."""
    default_backend: str = ""
    """The backend of requests that name none, for base models that several serve and `[models]`
    gives to none; empty means the first: the embedded engine, then those of the file."""
    backends_from_environment: bool = True
    """Whether `MINT_API_KEY`, `TINKER_API_KEY` and `BASETEN_API_KEY` alone make the backends
    "mint", "tinker" and "loops", if the file has none of that kind."""
    profile: Profile = "full"
    """What the HTTP door offers: "full", or "mint" for no more than MinT has live."""
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    """The gRPC door."""
    http: HttpSettings = field(default_factory=HttpSettings)
    """The HTTP door, where Tinker's and Loops' dialects are spoken."""
    tls: TlsFiles = field(default_factory=TlsFiles)
    """The doors' TLS."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """The embedded engine, which is the backend "local"."""
    limits: CoreSettings = field(default_factory=CoreSettings)
    """Bounds, retention and times."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log."""
    backends: Mapping[str, BackendTable] = field(default_factory=dict)
    """The backends beside the embedded engine, by name."""
    models: Mapping[str, ModelTable] = field(default_factory=dict)
    """Base models by the names that callers use."""

    @property
    def has_engine(self) -> bool:
        """Whether `[engine]` is a backend."""
        if self.engine.enabled is None:
            return not any(table.kind == "local" for table in self.backends.values())
        return self.engine.enabled

    def all_backends(self) -> dict[str, BackendTable]:
        """All backends by name, the embedded engine first."""
        engine: dict[str, BackendTable] = {}
        if self.has_engine:
            engine[ENGINE_BACKEND] = LocalBackendTable(
                kind="local",
                models=self.engine.models,
                device=self.engine.device,
                dtype=self.engine.dtype,
                threads=self.engine.threads,
            )
        return engine | dict(self.backends)

    def first_backend(self) -> str:
        """The default backend; empty if there is none at all."""
        return self.default_backend or next(iter(self.all_backends()), "")
