"""The settings of one backend that speaks Loops."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tinkergate.backends.addresses import check_service

LOOPS_URL = "https://api.baseten.co"
"""Where Loops' control plane is unless the settings say otherwise."""


@dataclass(frozen=True)
class LoopsSettings:
    """One account at Baseten Loops. Times are in seconds, sizes in bytes."""

    name: str
    """The name to choose the backend by."""
    base_url: str = ""
    """Where the control plane is; empty means Baseten's own. Trainers and samplers say themselves
    where they are."""
    api_key: str = field(default="", repr=False)
    """The key of the account to work under. It is sent to the service and never logged."""
    models: tuple[str, ...] = ()
    """The base models to serve, by the service's own names; empty asks the service."""

    team: str = ""
    """The name of the team to work in; empty means the account's own."""
    availability_model: Literal["dedicated", "spot"] = "dedicated"
    """What trainers and samplers run on. "spot" is cheaper and may be taken away, with all that was
    not saved."""
    replicas: int = 1
    """How many replicas each trainer has."""
    reuse_from_run_id: str = ""
    """An earlier run whose trainer is asked for, as it starts sooner. Only one model at a time asks
    for it: whoever gets it starts anew."""
    max_seq_len: int | None = None
    """The most tokens of one sequence that trainers and samplers are made for; absent leaves it to
    the service."""
    sampler_replicas: int | None = None
    """How many replicas each sampler has; absent leaves it to the service."""
    ready_time: float = 3600.0
    """How long a trainer or a sampler may take to start, and a sampler to load the weights that
    were saved for it."""
    ready_interval: float = 10.0
    """How often is asked meanwhile."""
    keepalive_interval: float = 60.0
    """How often the trainer of a live model hears that it is in use."""

    connect_timeout: float = 10.0
    """How long a connection may take to come about."""
    request_timeout: float = 60.0
    """How long the control plane may take to answer a request."""
    create_timeout: float = 300.0
    """How long it may take to make a session, a trainer or a sampler."""
    submit_timeout: float = 600.0
    """How long a trainer or sampler may take to accept work."""
    poll_timeout: float = 35.0
    """How long the service may hold a long poll."""
    retry_time: float = 300.0
    """How long a request is sent again, and a result asked for again, while the service cannot be
    reached or answers 408, 429 or 5xx; counted from the last answer that was of use. A sample call
    that is answered 429, or 503 with a time to wait, waits its turn for `operation_time`."""
    operation_time: float = 14_400.0
    """How long a result is waited for once the service has accepted the work."""

    pipeline_depth: int = 16
    """How many training operations of one model the service is given before the first is done."""
    max_concurrent_scores: int = 64
    """How many sequences are being scored at the same time."""
    samplers_kept: int = 16
    """How many samplers are kept of base models and checkpoints that were sampled or scored with
    directly; the one that was used least lately is let go."""
    max_answer_bytes: int = 256 << 20
    """The largest answer that is read, decompressed."""

    ca_file: Path | None = None
    """A PEM file of further certificate authorities to trust, for services with a private one."""
    proxy: str = ""
    """The URL of a proxy for the way to the service; empty leaves it to HTTP_PROXY, HTTPS_PROXY and
    NO_PROXY in the environment."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be: an empty name, a URL that is none."""
        check_service(self.name, self.base_url, self.url)
        if self.reuse_from_run_id and self.replicas > 1:
            raise ValueError("reuse_from_run_id goes with one replica; with more nothing is reused")

    @property
    def url(self) -> str:
        """Where the control plane is, without a slash at the end."""
        return (self.base_url or LOOPS_URL).rstrip("/")
