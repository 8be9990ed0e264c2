"""What a configuration describes, made: backends, the names of their base models, doors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tinkergate.backends.base import Backend
from tinkergate.backends.loops.settings import LoopsSettings
from tinkergate.config import Config, LocalBackendTable, ServiceTable
from tinkergate.config.settings import ENGINE_BACKEND
from tinkergate.core.backends import BackendOpening
from tinkergate.core.gateway import Gateway
from tinkergate.core.model_names import ModelName
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.address import Address
from tinkergate.ingress.grpc.door import GrpcDoor
from tinkergate.v1 import BackendKind

if TYPE_CHECKING:
    from tinkergate.backends.local.backend import LocalBackend


class Door(Protocol):
    """A way in."""

    async def start(self, gateway: Gateway) -> Address:
        """Listen; answers where. Raises ListenError."""

    async def drain(self) -> None:
        """Tell health checks that no new work is welcome. Calls are answered as before."""

    async def stop(self, grace: float) -> None:
        """Stop listening; calls that are running get `grace` seconds to end."""


def doors(config: Config) -> Mapping[str, Door]:
    """The doors by their names, none of them open yet. Raises ListenError for what can be found
    wrong before."""
    opened: dict[str, Door] = {
        "grpc": GrpcDoor(
            config.grpc,
            max_message_bytes=config.limits.max_message_bytes,
            tls=config.tls,
            api_keys=config.api_keys,
        )
    }
    if config.http.listen:
        # Without that door its libraries are not loaded.
        from tinkergate.ingress.http.door import HttpDoor

        opened["http"] = HttpDoor(
            config.http,
            data_dir=config.data_dir,
            tls=config.tls,
            api_keys=config.api_keys,
            profile=config.profile,
        )
    return opened


def model_names(config: Config) -> list[ModelName]:
    """The base models that the configuration names."""
    backends = config.all_backends()
    names = []
    for public, table in config.models.items():
        backend = table.backend or config.first_backend()
        own = table.name or public
        if isinstance(backends[backend], LocalBackendTable) and own.startswith(("/", ".", "~")):
            # The engine knows folders by their whole paths.
            own = str(Path(own).expanduser().resolve())
        names.append(ModelName(public, backend, own, table.aliases, table.tokenizer))
    return names


async def backends(config: Config) -> list[Backend | BackendOpening]:
    """The backends, in the order of preference. If the only one is an embedded engine, it is
    opened at once: what is wrong with it is told before anything is served. Raises GatewayError."""
    made: list[Backend | BackendOpening] = []
    tables = config.all_backends()
    for name, table in tables.items():
        if isinstance(table, ServiceTable):
            made.append(_service(name, table, config.data_dir))
        else:
            open_ = partial(_open_engine, name, table, config)
            local = BackendKind.BACKEND_KIND_LOCAL
            alone = len(tables) == 1
            made.append(await open_() if alone else BackendOpening(name, local, open_))
    return made


async def _open_engine(name: str, table: LocalBackendTable, config: Config) -> LocalBackend:
    try:
        # PyTorch takes seconds to load, and need not be there without the engine.
        from tinkergate.backends.local.opening import open_backend
    except ModuleNotFoundError as error:
        raise GatewayError(
            Kind.UNAVAILABLE,
            ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"the embedded engine needs {error.name}: pip install 'tinkergate[engine]', or do "
            "without the engine by TINKERGATE_ENGINE_ENABLED=false",
            backend=name,
        ) from error
    # A folder may go by its last part.
    listed = {Path(model).name for model in table.models}
    named = [
        each.upstream_name
        for each in model_names(config)
        if each.backend == name and each.upstream_name not in listed
    ]
    own_folder = config.data_dir / "backends" / name
    return await open_backend(
        [*table.models, *named],
        config.data_dir if name == ENGINE_BACKEND else own_folder,
        name=name,
        device=table.device,
        dtype=table.dtype,
        threads=table.threads,
    )


def _service(name: str, table: ServiceTable, data_dir: Path) -> Backend:
    settings = table.service(name)
    if isinstance(settings, LoopsSettings):
        from tinkergate.backends.loops.backend import LoopsBackend

        return LoopsBackend(settings)
    from tinkergate.backends.tinker.backend import TinkerBackend

    scratch = settings.scratch_dir or data_dir / "scratch" / name
    return TinkerBackend(replace(settings, scratch_dir=scratch))
