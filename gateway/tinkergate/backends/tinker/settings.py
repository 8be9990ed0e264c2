"""The settings of one backend that speaks Tinker's dialect."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tinkergate.backends.addresses import check_service

Dialect = Literal["tinker", "mint"]

TINKER_URL = "https://tinker.thinkingmachines.dev/services/tinker-prod"
"""Where Tinker is unless the settings say otherwise."""
MINT_URL = "https://mint.macaron.xin"
"""Where MinT is unless the settings say otherwise."""


@dataclass(frozen=True)
class TinkerSettings:
    """One service. Times are in seconds, sizes in bytes."""

    name: str
    """The name to choose the backend by."""
    dialect: Dialect = "tinker"
    """"tinker": protobuf bodies, requests that can be sent again under their seq_id. "mint": JSON,
    one training operation of a model at a time, and none is sent twice."""
    base_url: str = ""
    """Where the service is; empty means the public address of the dialect's own service. A path is
    kept as a prefix of `/api/v1`."""
    api_key: str = field(default="", repr=False)
    """The key of the account to work under: `tml-…` or a JWT for Tinker, `sk-…` for MinT. It is
    sent to the service and never logged."""
    models: tuple[str, ...] = ()
    """The base models to serve, by the service's own names; empty asks the service."""
    project_id: str = ""
    """The service's project that sessions are put into; empty leaves it to the service."""

    connect_timeout: float = 5.0
    """How long a connection may take to come about."""
    request_timeout: float = 60.0
    """How long the service may take to answer a request, long polls apart."""
    poll_timeout: float = 45.0
    """How long the service may hold a long poll."""
    retry_time: float = 300.0
    """How long a request is sent again, and a result asked for again, while the service cannot be
    reached or answers 408, 409, 429 or 5xx; counted from the last answer that was of use. A sample
    call that is answered 429 waits its turn for `operation_time`."""
    billing_pause: float = 3600.0
    """How long work waits while the service answers 402 (Payment Required). It is asked again every
    5 s; then the operation fails. A service that announces another bound is held to the lower."""
    operation_time: float = 14_400.0
    """How long a result is waited for once the service has accepted the work."""
    heartbeat_interval: float = 10.0
    """How often the service hears that a session is in use."""

    pipeline_depth: int = 16
    """How many training operations of one model the service is given before the first is done; the
    dialect "mint" takes 1 whatever this is."""
    max_concurrent_scores: int = 64
    """How many sequences are being scored at the same time."""
    samplers_kept: int = 64
    """How many samplers are kept of base models and checkpoints that were sampled or scored with
    directly; the one that was used least lately is forgotten."""
    max_answer_bytes: int = 256 << 20
    """The largest answer that is read, decompressed."""
    max_archive_bytes: int = 64 << 30
    """The largest archive of a checkpoint that is fetched, and the most that it may unpack to."""
    archives_kept: int = 2
    """How many fetched checkpoints stay on disk while their files are being read."""
    scratch_dir: Path | None = None
    """Where archives are unpacked; absent means the system's temporary folder."""

    ca_file: Path | None = None
    """A PEM file of further certificate authorities to trust, for services with a private one."""
    proxy: str = ""
    """The URL of a proxy for the way to the service; empty leaves it to HTTP_PROXY, HTTPS_PROXY and
    NO_PROXY in the environment."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be: an empty name, a URL that is none."""
        check_service(self.name, self.base_url, self.url)

    @property
    def url(self) -> str:
        """Where the service is, without a slash at the end."""
        default = MINT_URL if self.dialect == "mint" else TINKER_URL
        return (self.base_url or default).rstrip("/")
