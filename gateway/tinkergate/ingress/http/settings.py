"""What can be set about the HTTP door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20

Capacity = Literal["serverless", "dedicated"]


@dataclass(frozen=True)
class HttpSettings:
    """The HTTP door. Times are in seconds, sizes in bytes."""

    listen: str = ""
    """Where to listen, HOST:PORT; empty means that there is no HTTP door. IPv6 hosts go in
    brackets; port 0 takes any free port."""
    public_url: str = ""
    """The URL by which clients reach the door, such as https://gateway.example/tinker; links that
    the gateway hands out begin with it. Empty means the address that it listens on."""
    allow_insecure_bind: bool = False
    """Listen beyond loopback even without TLS and keys: everybody who reaches the port may then
    train, read and delete, and everybody on the way may read along."""

    max_body_bytes: int = 64 * MIB
    """The largest body of a request, as it is sent and as it is once decompressed."""
    long_poll: float = 30.0
    """The most time that a poll is held open; official clients give up after 45 s."""
    token_lifetime: float = 3600.0
    """How long a token is good for that a key was exchanged for. Not under 600."""

    loops_capacity: Capacity = "serverless"
    """What trainers and samplers of Loops' dialect are told to be: "serverless", shared, or
    "dedicated", the caller's own."""

    keep_alive: float = 75.0
    """After how long a connection without a request is closed."""
    head_timeout: float = 30.0
    """How long the head of a request may take to arrive, and each pause within its body."""
    max_connections: int = 20_000
    """The most connections at once; requests beyond are refused with 503."""
