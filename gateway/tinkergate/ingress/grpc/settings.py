"""What can be set about the gRPC door."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GrpcSettings:
    """The gRPC door. Times are in seconds."""

    listen: str = "127.0.0.1:7700"
    """Where to listen, HOST:PORT. IPv6 hosts go in brackets; port 0 takes any free port."""
    allow_insecure_bind: bool = False
    """Listen beyond loopback even without TLS and keys: everybody who reaches the port may then
    train, read and delete, and everybody on the way may read along."""
    reflection: bool = True
    """Whether clients may ask for the contract, as grpcurl does."""

    default_deadline: float = 600.0
    """The time that a call with one message each way gets if its caller sets no deadline."""
    max_concurrent_calls: int = 10_000
    """The most calls at once, waiting ones included; more are refused with RESOURCE_EXHAUSTED."""

    keepalive_time: float = 90.0
    """After how long a silent connection is pinged."""
    keepalive_timeout: float = 20.0
    """How long the answer to a ping may take before the connection is given up."""
    min_ping_interval: float = 30.0
    """How often clients may ping; those that do so more often are sent away."""
    max_connection_age: float | None = None
    """After how long a connection is closed, so that clients spread over gateways anew; absent
    means never."""
    max_connection_age_grace: float = 300.0
    """How long calls of a connection that is closed for its age may go on."""
