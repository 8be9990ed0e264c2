"""`tinkergate status`: what a gateway is and what it is doing."""

from __future__ import annotations

import json as json_module
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tinkergate.cli.connection import GatewayAddress, talks_to_gateway

if TYPE_CHECKING:
    from tinkergate.v1 import SupportedModel
    from tinkergate_client import Client

UNFINISHED = ("parked", "queued", "running")


@dataclass(frozen=True)
class BackendStatus:
    """A backend."""

    name: str
    kind: str
    unavailable: str
    """Why it cannot be used now; empty if it can."""


@dataclass(frozen=True)
class BaseModelStatus:
    """A base model that can be trained or sampled."""

    name: str
    backend: str
    max_context_length: int
    trainable: bool
    sampleable: bool
    aliases: list[str]
    upstream_name: str
    """The backend's own name of it, where that differs."""


@dataclass(frozen=True)
class SessionStatus:
    """A session in use."""

    session_id: str
    display_name: str
    models: int
    samplers: int
    created: str
    last_heard: str


@dataclass(frozen=True)
class ModelStatus:
    """A model in training."""

    model_id: str
    base_model: str
    state: str
    lora_rank: int
    optimizer_steps: int
    last_checkpoint: str
    waiting_operations: int


@dataclass(frozen=True)
class Status:
    """A gateway at one moment. `--json` prints it as it is."""

    address: str
    version: str
    default_model: str
    backends: list[BackendStatus]
    base_models: list[BaseModelStatus]
    sessions: list[SessionStatus]
    models: list[ModelStatus]
    operations: dict[str, int]
    """How many operations the gateway remembers, by their state."""


@talks_to_gateway
def status(
    gateway: GatewayAddress,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a gateway's version, backends, models, sessions and operations."""
    with gateway.client() as client:
        found = read_status(client)
    if json:
        typer.echo(json_module.dumps(asdict(found), indent=2))
    else:
        typer.echo(render(found))


def read_status(client: Client) -> Status:
    """Ask a gateway for everything that is shown. Raises TinkergateError."""
    from tinkergate.v1 import (
        BackendKind,
        ModelState,
        OperationState,
        SessionState,
    )

    capabilities = client.capabilities()
    operations: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for operation in client.operations():
        state = OperationState.Name(operation.state).removeprefix("OPERATION_STATE_").lower()
        operations[state] += 1
        waiting[operation.model_id] += state in UNFINISHED
    return Status(
        address=client.target,
        version=capabilities.gateway_version,
        default_model=capabilities.default_model,
        backends=[
            BackendStatus(
                backend.name,
                BackendKind.Name(backend.kind).removeprefix("BACKEND_KIND_").lower(),
                backend.unavailable,
            )
            for backend in capabilities.backends
        ],
        base_models=[base_model_status(model) for model in capabilities.models],
        sessions=[
            SessionStatus(
                session.session_id,
                session.display_name,
                len(session.model_ids),
                len(session.sampler_ids),
                session.create_time.ToJsonString(),
                session.last_heartbeat_time.ToJsonString(),
            )
            for session in client.sessions(SessionState.SESSION_STATE_ACTIVE)
        ],
        models=[
            ModelStatus(
                model.model_id,
                model.base_model,
                ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
                model.lora_config.rank,
                model.optimizer_steps,
                model.last_checkpoint,
                waiting[model.model_id],
            )
            for model in client.models()
            if model.state in (ModelState.MODEL_STATE_CREATING, ModelState.MODEL_STATE_READY)
        ],
        operations=dict(sorted(operations.items())),
    )


def base_model_status(model: SupportedModel) -> BaseModelStatus:
    """A base model as it is shown."""
    return BaseModelStatus(
        model.name,
        model.backend,
        model.max_context_length,
        model.trainable,
        model.sampleable,
        list(model.aliases),
        model.upstream_name,
    )


def render_base_model(model: BaseModelStatus) -> str:
    """A base model as text for people."""
    there = f" as {model.upstream_name}" if model.upstream_name else ""
    return f"{model.name}  {model.max_context_length} tokens  on {model.backend}{there}"


def render(status: Status) -> str:
    """The status as text for people."""
    lines = [f"Tinkergate {status.version} at {status.address}"]
    lines += _section(
        "Backends",
        [
            f"{backend.name} ({backend.kind})"
            + (f"  unavailable: {backend.unavailable}" if backend.unavailable else "")
            for backend in status.backends
        ],
    )
    lines += _section(
        "Base models",
        [
            render_base_model(model) + ("  (default)" if model.name == status.default_model else "")
            for model in status.base_models
        ],
    )
    lines += _section(
        "Sessions",
        [
            f"{session.session_id}"
            + (f"  {session.display_name!r}" if session.display_name else "")
            + f"  {session.models} models, {session.samplers} samplers"
            + f"  last heard {session.last_heard}"
            for session in status.sessions
        ],
    )
    lines += _section(
        "Models in training",
        [
            f"{model.model_id}  {model.base_model}  rank {model.lora_rank}  {model.state}"
            f"  {model.optimizer_steps} steps  {model.waiting_operations} operations waiting"
            for model in status.models
        ],
    )
    counts = [f"{count} {state}" for state, count in status.operations.items()]
    lines += _section("Operations", [", ".join(counts)] if counts else [])
    return "\n".join(lines)


def _section(title: str, entries: list[str]) -> list[str]:
    return ["", title, *(f"  {entry}" for entry in entries or ["none"])]
